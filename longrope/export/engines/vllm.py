"""vLLM: one list for the whole server, chosen by the longest sequence it is started for.

Sources, vllm-project/vllm: layers/rotary_embedding/phi3_long_rope_scaled_rope.py (commit 17d618b0f944) and
__init__.py (commit 07b12f1b16d5), config/model.py (commit 0052a5b81898), transformers_utils/config.py
(commit 0036026e7171, v0.24 or later, which reads configs through transformers 5).
"""

from __future__ import annotations

import json

from longrope.export.engines.folder import MSCALES_SET_IT, Folder
from longrope.export.engines.service import NOTHING, Service
from longrope.lengths import format_length

VERSION = "vLLM 0.24 or later (config of commit 0036026e7171)"

# Model types whose attention hands rope_parameters to get_rope.
_KNOWN = (
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)
_INTERLEAVED = ("deepseek_v3", "glm4")
_CROSSING = "never: one list for the whole server"


def serve(folder: Folder, longest: int) -> Service:
    """What ``vllm serve`` computes when it is started for sequences of at most ``longest`` tokens."""
    command = (f"vllm serve {folder.path} --max-model-len {longest}",)
    refused = folder.why_not("vLLM", _KNOWN, _INTERLEAVED)
    if refused is not None:
        return Service(lambda length: NOTHING, longest, _CROSSING, (), mismatches=(refused,))
    used = folder.both_lists(folder.mscales())[longest > folder.original]
    default = getattr(folder.config, "original_max_position_embeddings", None) or folder.longest
    notes = [
        f"all sequences get the {used.name} list, because --max-model-len {longest} is "
        f"{'above' if longest > folder.original else 'not above'} the original length {format_length(folder.original)}",
        f"without --max-model-len the server takes {format_length(default)} tokens and uses the "
        f"{'long' if default > folder.original else 'short'} list",
    ]
    return Service(
        lambda length: used,
        longest,
        _CROSSING,
        command,
        ignored=folder.other_attention_factors(used.attention_factor, remedy=MSCALES_SET_IT),
        notes=tuple(notes),
        mismatches=_too_long(folder, longest),
    )


def _too_long(folder: Folder, longest: int) -> tuple[str, ...]:
    """What the server says to lengths beyond those of the config and the tokenizer."""
    limits = {"max_position_embeddings in config.json": folder.longest}
    tokenizer = folder.path / "tokenizer_config.json"
    if tokenizer.is_file():
        try:
            limit = json.loads(tokenizer.read_text(encoding="utf-8"))["model_max_length"]
        except (ValueError, KeyError, TypeError):  # not JSON, or without a limit
            limit = None
        if isinstance(limit, (int, float)):
            limits["model_max_length in tokenizer_config.json"] = int(limit)
    return tuple(
        f"vLLM refuses --max-model-len {longest}: {name} is {limit}"
        for name, limit in limits.items()
        if longest > limit
    )
