"""What DeepSpeed Ulysses can share among processes, and what it would compute wrongly without a word.

Each process holds a shard of the sequence; for attention, heads are exchanged for positions, so that each process has
all positions of some heads (arXiv 2309.14509).
"""

from __future__ import annotations

from typing import Any

from longrope.exceptions import SettingsError, UnsupportedModelError

_REFUSED = {
    "gpt_neox": "its config names no key-value heads, which DeepSpeed Ulysses asks for",
    "deepseek_v3": "its keys and values have heads of two sizes (MLA), which DeepSpeed Ulysses does not know",
}


def check_sequence_parallel(config: Any, sp: int, kernel: str, seq_length: int) -> None:
    """Raise unless ``sp`` processes can share a sequence of the model.

    Args:
        config: the transformers config.
        sp: processes that share a sequence; 1 is always right.
        kernel: the attention implementation.
        seq_length: tokens of a segment.

    Raises:
        UnsupportedModelError: if Ulysses cannot serve the architecture.
        SettingsError: if sp does not fit its heads.
    """
    if sp == 1:
        return
    if config.model_type in _REFUSED:
        raise UnsupportedModelError(
            f"sp is {sp}, and model type {config.model_type!r} cannot be: {_REFUSED[config.model_type]}; use sp 1"
        )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % sp:
        raise SettingsError(f"sp is {sp}, but the model has {heads} query heads; choose an sp that divides {heads}")
    if kv_heads % sp and sp % kv_heads:
        raise SettingsError(
            f"sp is {sp}, but the model has {kv_heads} key-value heads; choose an sp that divides {kv_heads} or is a "
            "multiple of it"
        )
    if kernel.startswith("flash"):
        return
    if kernel != "sdpa":
        raise SettingsError(f"attention kernel {kernel!r} needs a mask, which sp {sp} cannot pass on; use sdpa")
    window = local_window(config)
    if window is not None and window < seq_length:
        raise SettingsError(
            f"sp is {sp} and the model has layers that attend to {window} tokens only; with sdpa they would attend to "
            "all, so use --kernel flash_attention_2 or sp 1"
        )


def local_window(config: Any) -> int | None:
    """Tokens that the local layers of a model attend to; None where all layers attend to everything."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", None) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return int(window)
