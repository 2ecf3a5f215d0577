"""exllamav3: one list, chosen when the model is loaded; the attention factor always follows from the lengths.

Sources, turboderp-org/exllamav3: util/rope.py (commit 04458205486c), model/config.py (commit 00ad034c7888),
architecture/phi3.py, llama.py and gemma3.py, architectures.py (commit 000ad6a27754).
"""

from __future__ import annotations

from typing import Any

from longrope.export.engines.folder import Folder
from longrope.export.engines.service import NOTHING, Applied, Service
from longrope.lengths import format_length
from longrope.rope import attention_factor

VERSION = "exllamav3 (rope.py of commit 04458205486c)"

_KNOWN = ("llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe")
_OVERRIDES = ("phi3",)  # takes the length it is loaded for into account; the others go by the config alone


def serve(folder: Folder, longest: int) -> Service:
    """What exllamav3 computes when the model is loaded for sequences of at most ``longest`` tokens."""
    command = (f"load {folder.path} with max_seq_len {longest} (TabbyAPI: max_seq_len: {longest})",)
    refused = folder.why_not("exllamav3", _KNOWN)
    if refused is not None:
        return Service(lambda length: NOTHING, longest, "never: one list for all", (), mismatches=(refused,))
    parameters = _as_written(folder.settings)
    top = folder.settings.get("original_max_position_embeddings")
    original = int(parameters.get("original_max_position_embeddings") or top or folder.original)
    decisive = longest if folder.model_type in _OVERRIDES else folder.longest
    name = "long" if decisive > original else "short"
    scale = attention_factor.su(folder.longest / original, original)
    used = Applied(name, folder.read_list(name), scale)
    return Service(
        lambda length: used,
        longest,
        "never: one list for all",
        command,
        ignored=folder.other_attention_factors(scale),
        notes=(
            f"all sequences get the {name} list, because "
            + ("the length it is loaded for" if folder.model_type in _OVERRIDES else "max_position_embeddings")
            + f" is {format_length(decisive)} and the original length {format_length(original)}",
        ),
    )


def _as_written(settings: dict[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    return parameters
