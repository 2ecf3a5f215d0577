"""Floating-point operations of training: those of the model, and those that the hardware does.

A multiplication of matrices takes two operations for each parameter and token, and twice as many again in the backward
pass: one part for the gradient of its input, one for that of its weight. Weights that are frozen need no gradient, so
their part is left out. Attention is causal: half of the square of scores is never computed, and not
counted either. Norms, RoPE, softmax and the optimizer are left out, as is usual (PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

from longrope.finetune.model_shape import ModelShape
from longrope.finetune.settings import FinetuneSettings


@dataclass(frozen=True)
class TrainingFlops:
    """Operations of an optimizer step, all devices together.

    Attributes:
        model: what the step needs; model FLOP utilisation (MFU) counts these.
        hardware: with what activation checkpointing and the tiled loss compute a second time.
    """

    model: float
    hardware: float

    @classmethod
    def of(cls, shape: ModelShape, settings: FinetuneSettings) -> TrainingFlops:
        """Of ``global_batch`` segments of ``seq_length`` tokens."""
        length = settings.seq_length
        linear = 2.0 * shape.layers * (shape.attention + shape.mlp) * length
        head = 2.0 * shape.head * length
        attention = forward_attention(shape, settings)
        model = (3 if settings.method == "full" else 2) * linear + (3 if settings.trains_head else 2) * head
        model += 3 * attention
        if settings.method == "attention":
            model += 2.0 * shape.projections * length
        elif settings.adapts:
            model += 3 * 2.0 * shape.adapters * length
        again = head + (linear + attention if settings.memory.checkpoint_activations else 0)
        return cls(model * settings.global_batch, (model + again) * settings.global_batch)


def forward_attention(shape: ModelShape, settings: FinetuneSettings) -> float:
    """Operations of scores and their products with values in one segment's forward pass, all layers.

    Of several windows that are trained in turn, their mean.
    """
    length, windows = settings.seq_length, settings.trained_windows
    each = [
        full_attention(shape, window) * (length // window) if window < length else _whole_segment(shape, settings)
        for window in windows
    ]
    return sum(each) / len(each)


def _whole_segment(shape: ModelShape, settings: FinetuneSettings) -> float:
    length = settings.seq_length
    if settings.attention == "shifted-sparse":
        group = settings.group or max(length // 4, 2)
        whole, rest = divmod(length, group)
        return shape.layers * _per_key(shape) * (whole * _pairs(group) + _pairs(rest))
    return full_attention(shape, length)


def full_attention(shape: ModelShape, length: int) -> float:
    """Operations of attention in the forward pass of ``length`` tokens, all layers, each within its window."""
    return sum(_per_key(shape) * _pairs(length, window) for window in shape.windows)


def forward_flops(shape: ModelShape, length: int, predicted: int) -> float:
    """Operations of a forward pass of ``length`` tokens that makes logits at ``predicted`` positions."""
    linear = 2.0 * shape.layers * (shape.attention + shape.mlp) * length
    return linear + 2.0 * shape.head * predicted + full_attention(shape, length)


def _per_key(shape: ModelShape) -> float:
    """Operations of one query with one key and its value, all heads of a layer."""
    return 2.0 * shape.heads * (shape.key_dim + shape.value_dim)


def _pairs(length: int, window: int | None = None) -> float:
    """Pairs of a query and a key that it sees: itself and those before, at most ``window``."""
    reach = length if window is None else min(window, length)
    return reach * (reach + 1) / 2 + (length - reach) * reach
