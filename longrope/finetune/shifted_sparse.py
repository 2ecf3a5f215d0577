"""LongLoRA's shifted sparse attention (S2-Attn, arXiv 2309.12307, section 3.2), for training only.

Positions are cut into groups, and each attends to its own group. For half of the heads the cuts lie half a group
later, so that neighbouring groups exchange what they know. The published code rolls the sequence round, by which the
first half-group shares a group with the last one and sees the future; here that group is split in two. No mask is
built: each group is causal attention by itself, computed by the kernel that the model was loaded with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from longrope.exceptions import RunFailedError, SettingsError, UnsupportedModelError
from longrope.finetune.sequence_parallel import local_window
from longrope.lengths import format_length
from longrope.model.architectures import architecture_for


class ShiftedSparseAttention:
    """Shifted sparse attention in force on a model; made by :func:`use_shifted_sparse`.

    It stands in transformers' AttentionInterface under the name of the kernel, and hands on what other models ask for.
    A name of its own would be refused by accelerate under Ulysses, and FlashAttention's code in transformers imports
    what the name says.

    Attributes:
        group: positions of a group.
        kernel: the attention implementation that computes each group.
    """

    def __init__(self, model: Any, length: int, group: int = 0, sp_rank: int = 0, sp_size: int = 1) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._config = model.config
        self.kernel = str(self._config._attn_implementation)
        self.group = group or max(length // 4, 2)
        _check(self._config, self.kernel, self.group, length)
        self._heads = self._config.num_attention_heads
        self._first_head = sp_rank * (self._heads // sp_size)
        self._on = True
        self._interface = ALL_ATTENTION_FUNCTIONS
        self._full = ALL_ATTENTION_FUNCTIONS[self.kernel]
        if self._full.__module__.startswith("deepspeed"):
            raise RunFailedError("shifted sparse attention was put on a model after Ulysses; it has to be there before")
        self._interface[self.kernel] = self._attend

    def remove(self) -> None:
        """Give the model its full attention back; nothing happens where that was done already."""
        self._on = False  # Ulysses, if it came meanwhile, keeps calling this
        if self._interface[self.kernel] == self._attend:
            self._interface[self.kernel] = self._full

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """An attention function of transformers: query (B, H, T, d), key and value (B, K, T, d) to (B, T, H, d)."""
        if not (self._on and module.training and module.config is self._config):
            options = {"dropout": dropout, "scaling": scaling, **kwargs}
            full: tuple[torch.Tensor, Any] = self._full(module, query, key, value, attention_mask, **options)
            return full
        _check_pass(query, key, attention_mask, kwargs.get("position_ids"))

        def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            # No position ids, from which FlashAttention would work out packed sequences: they are those of all groups.
            out: torch.Tensor = self._full(module, q, k, v, None, dropout=dropout, scaling=scaling)[0]
            return out

        heads, kv_heads = query.shape[1], key.shape[1]
        plain = min(max(self._heads // 2 - self._first_head, 0), heads)  # these heads come first
        if plain in (0, heads):
            return self._grouped(causal, query, key, value, shift=plain == 0), None
        shared = heads // kv_heads  # query heads of a key-value head
        if kv_heads == 1:
            first, second = slice(None), slice(None)
        elif plain % shared == 0:
            first, second = slice(plain // shared), slice(plain // shared, None)
        else:  # the cut goes through a key-value head
            key, value = (each.repeat_interleave(shared, dim=1) for each in (key, value))
            first, second = slice(plain), slice(plain, None)
        halves = (
            self._grouped(causal, query[:, :plain], key[:, first], value[:, first], shift=False),
            self._grouped(causal, query[:, plain:], key[:, second], value[:, second], shift=True),
        )
        return torch.cat(halves, dim=2), None

    def _grouped(
        self,
        causal: Callable[..., torch.Tensor],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        shift: bool,
    ) -> torch.Tensor:
        """Causal attention within groups: heads first (B, h, T, d) in, positions first (B, T, h, d) out."""
        rows, length = query.shape[0], query.shape[2]
        start = min(self.group // 2, length) if shift else 0
        groups = (length - start) // self.group
        stop = start + groups * self.group

        def fold(heads: torch.Tensor) -> torch.Tensor:  # (B, h, n g, d) -> (B n, h, g, d)
            cut: torch.Tensor = heads[:, :, start:stop].unflatten(2, (groups, self.group))
            return cut.transpose(1, 2).flatten(0, 1)

        parts = []
        if start:  # the first half-group
            parts.append(causal(*(each[:, :, :start] for each in (query, key, value))))
        if groups:
            folded = causal(fold(query), fold(key), fold(value))  # (B n, g, h, d)
            parts.append(folded.unflatten(0, (rows, groups)).flatten(1, 2))
        if stop < length:  # the last half-group, or what is left of a length that is no multiple of the group
            parts.append(causal(*(each[:, :, stop:] for each in (query, key, value))))
        return torch.cat(parts, dim=1)


def use_shifted_sparse(
    model: Any, length: int, group: int = 0, *, sp_rank: int = 0, sp_size: int = 1
) -> ShiftedSparseAttention:
    """Let ``model`` attend in shifted groups while it trains, until :meth:`ShiftedSparseAttention.remove`.

    In eval mode it has full attention, as it will have when it is used.

    Args:
        model: a transformers causal language model, loaded with attention ``sdpa`` or FlashAttention, before Ulysses.
        length: tokens of a training segment.
        group: tokens of a group; a quarter of ``length`` when 0. The last group is shorter where it does not divide.
        sp_rank: which of the processes that share a sequence this is.
        sp_size: how many these are. Each computes H / sp_size of the model's H heads; those from H // 2 on are shifted.

    Raises:
        UnsupportedModelError: if the model's attention is more than causal attention to everything before.
        SettingsError: if the kernel cannot do it, or the group does not fit the length.
    """
    return ShiftedSparseAttention(model, length, group, sp_rank, sp_size)


def _check(config: Any, kernel: str, group: int, length: int) -> None:
    architecture = architecture_for(config)
    window = local_window(config)
    why = None
    if architecture.local_layers or (window is not None and window <= length):
        why = "it has layers that attend to a sliding window"
    elif getattr(config, "kv_lora_rank", None) is not None:
        why = "its keys and values are compressed (MLA)"
    elif getattr(config, "attn_logit_softcapping", None) is not None:
        why = "it caps attention scores"
    if why is not None:
        raise UnsupportedModelError(
            f"shifted-sparse attention cannot train model type {architecture.model_type!r}: {why}; use --attention full"
        )
    if kernel != "sdpa" and "flash" not in kernel:
        raise SettingsError(f"shifted-sparse attention cannot use kernel {kernel!r}; use sdpa or flash_attention_2")
    if not 2 <= group <= length:
        raise SettingsError(
            f"group is {format_length(group)} for segments of {format_length(length)}; give from 2 tokens to a segment"
        )


def _check_pass(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None
) -> None:
    """Refuse batches that grouped causal attention would compute wrongly."""
    if mask is not None:
        raise RunFailedError(
            "shifted-sparse attention has no masks: give segments without padding, or --attention full"
        )
    length = query.shape[2]
    if key.shape[2] != length:
        raise RunFailedError("shifted-sparse attention knows no cache; generate in eval mode")
    if positions is not None and bool((positions[:, -1] - positions[:, 0] != length - 1).any()):
        raise RunFailedError(
            "shifted-sparse attention cannot keep documents apart whose positions start anew; use --attention full"
        )
