"""Factors in a transformers config: rope type ``longrope``, in the spelling of transformers 5 or 4."""

from __future__ import annotations

import math
from typing import Any

from longrope.exceptions import SettingsError, UnsupportedModelError
from longrope.export.two_lists import TwoLists, losses, two_lists
from longrope.model.architectures import GLOBAL_LAYERS, architecture_for
from longrope.rope.attention_factor import su
from longrope.rope.policy import FactorSchedule

CONFIG_FORMATS = ("v5", "v4")
_KEPT = ("rope_theta", "partial_rotary_factor")
_MSCALES = ("short_mscale", "long_mscale")
_LOCAL_LAYERS = "sliding_attention"
_V4_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


def set_longrope(
    config: Any,
    schedule: FactorSchedule,
    short_window: int | None = None,
    single_list: bool = False,
    favoured: str = "long",
) -> tuple[str, ...]:
    """Write a schedule into a transformers v5 config as rope type ``longrope``.

    The original length goes to the top level and into the parameters, with ``factor`` its exact ratio, because
    readers differ in which they take.

    Args:
        short_window: length of the window that becomes the short list; see :func:`two_lists`.
        single_list: the long list serves as the short one as well.
        favoured: the list whose attention factor serves both, ``long`` or ``short``.

    Returns:
        What plain transformers will do differently from the schedule, a line each.
    """
    lists = two_lists(schedule, short_window, single_list, favoured)
    original = lists.original_length
    config.max_position_embeddings = lists.long.max_length
    config.original_max_position_embeddings = original
    architecture = architecture_for(config)
    present = architecture.rope_parameters_of(config)
    parameters: dict[str, Any] = {
        **{name: present[name] for name in _KEPT if name in present},
        "rope_type": "longrope",
        "short_factor": list(lists.short.factors.lambdas),
        "long_factor": list(lists.long.factors.lambdas),
        "original_max_position_embeddings": original,
        "factor": lists.ratio,
        "attention_factor": lists.attention_factor,
    }
    if present.get("rope_type") != "default" and present.get("mscale_all_dim"):
        # deepseek_v3 makes its softmax scale of these whatever the rope type; its attention was trained with it.
        parameters.update({name: present[name] for name in ("mscale", "mscale_all_dim", "factor") if name in present})
    if not is_su(lists):
        # vLLM and SGLang know an attention factor by these names only, and take su without them. transformers 5 ignores
        # them with a line of warning.
        attention_factors = (lists.short.factors.attention_factor, lists.long.factors.attention_factor)
        parameters.update(zip(_MSCALES, attention_factors, strict=True))
    architecture.set_rope_parameters(config, parameters)
    return losses(schedule, lists, architecture)


def is_su(lists: TwoLists) -> bool:
    """Whether the attention factor is the one that engines compute for themselves."""
    own = su(lists.ratio, lists.original_length)
    return all(
        math.isclose(each, own, rel_tol=1e-6) for each in (lists.attention_factor, lists.long.factors.attention_factor)
    )


def v4_losses(model_type: str, lists: TwoLists) -> tuple[str, ...]:
    """What releases of transformers 4 do differently with the older spelling, a line each (docs/export.md)."""
    if model_type == "olmo2":
        return ("transformers 4 refuses this config: its olmo2 models take no rope type longrope",)
    if lists.short.factors.lambdas == lists.long.factors.lambdas or model_type == "phi3":
        return ()
    return ("transformers before 4.51 uses one of the two lists at all lengths (--single-list makes them equal)",)


def to_v4(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json with rope type ``longrope`` in the spelling of transformers 4.

    ``rope_scaling`` without rope_theta and partial_rotary_factor, which stand at the top level under the names of the
    model; for gemma3 it is that of the global layers, and ``rope_local_base_freq`` the rope_theta of the others. The
    original length stays in ``rope_scaling`` too: transformers 4 ignores it there, vLLM and transformers 5 need it.

    Raises:
        SettingsError: if transformers 4 could not be told the attention factor.
        UnsupportedModelError: if it could not be told the RoPE of the local layers.
    """
    config = dict(config)
    model_type = config["model_type"]
    parameters = config.pop("rope_parameters")
    if GLOBAL_LAYERS in parameters:
        local = parameters[_LOCAL_LAYERS]
        if local.get("rope_type", "default") != "default":
            raise UnsupportedModelError(
                f"the sliding-window layers have rope type {local['rope_type']!r}, which a {model_type} config of "
                "transformers 4 cannot say; use --config-format v5"
            )
        config["rope_local_base_freq"] = local["rope_theta"]
        parameters = parameters[GLOBAL_LAYERS]
    names = _V4_NAMES.get(model_type, {})
    config.update({names.get(name, name): parameters[name] for name in _KEPT if name in parameters})
    scaling = {name: value for name, value in parameters.items() if name not in _KEPT}
    if model_type == "phi3":  # transformers 4 refuses all but these three, and computes su
        if _MSCALES[0] in scaling:
            raise SettingsError(
                f"transformers 4 gives phi3 models the attention factor su, not {scaling['attention_factor']:g}; "
                "use --config-format v5"
            )
        scaling = {"type": "longrope", **{name: scaling[name] for name in ("short_factor", "long_factor")}}
    config["rope_scaling"] = scaling
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    return config
