"""mlx-lm: always the long list; reads ``rope_scaling`` only, and the attention factor follows from the lengths.

Sources, ml-explore/mlx-lm: models/rope_utils.py (commit 060aa4349449), models/llama.py, qwen2.py, qwen3.py, granite.py,
phi3.py, mixtral.py, qwen3_moe.py, gemma3_text.py and smollm3.py, utils.py (commit 003da2e91927). Reading
``rope_parameters`` is proposed in its pull request 953.
"""

from __future__ import annotations

from typing import Any

from longrope.export.engines.folder import Folder
from longrope.export.engines.service import NOTHING, Applied, Service

VERSION = "mlx-lm (rope_utils.py of commit 060aa4349449)"

_KNOWN = ("granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
_CROSSING = "never: always the long list"
_REMEDY = "export with --config-format v4"
_DEFAULT_THETA = 10000.0
_ORIGINAL = "original_max_position_embeddings"


def serve(folder: Folder, longest: int) -> Service:
    """What mlx-lm computes, whatever the length."""
    refused = folder.why_not("mlx-lm", _KNOWN) or _unreadable(folder)
    if refused is not None:
        return Service(lambda length: NOTHING, longest, _CROSSING, (), mismatches=(refused,))
    written = folder.settings["rope_scaling"]
    place = folder.settings if folder.model_type == "phi3" else written
    scale = folder.su(int(place[_ORIGINAL]))
    used = Applied("long", folder.read_list("long"), scale)
    ignored = [*folder.other_attention_factors(scale)]
    ignored += [f"{name} of the config" for name in ("short_mscale", "long_mscale") if name in written]
    return Service(
        lambda length: used,
        longest,
        _CROSSING,
        (f"mlx_lm.server --model {folder.path}",),
        ignored=tuple(ignored),
    )


def _unreadable(folder: Folder) -> str | None:
    """Why mlx-lm does not find the factors in the config as it is written, or None."""
    settings: dict[str, Any] = folder.settings
    written = settings.get("rope_scaling")
    phi3 = folder.model_type == "phi3"
    if not isinstance(written, dict):
        return f"the config has rope_parameters and mlx-lm reads rope_scaling, so that it gets no factors; {_REMEDY}"
    if float(settings.get("rope_theta", _DEFAULT_THETA)) != folder.rope.rope_theta:
        return f"mlx-lm reads rope_theta at the top of the config, where it is missing; {_REMEDY}"
    if phi3 and written.get("type") not in ("longrope", "su"):
        return f'mlx-lm wants the rope type of phi3 under "type"; {_REMEDY}'
    if not phi3 and (written.get("type") or written.get("rope_type")) != "longrope":
        return f'mlx-lm knows the rope type as "longrope" only; {_REMEDY}'
    if _ORIGINAL not in (settings if phi3 else written):
        return f"mlx-lm reads {_ORIGINAL} {'at the top' if phi3 else 'in rope_scaling'}, where it is missing; {_REMEDY}"
    return None
