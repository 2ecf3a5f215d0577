"""How a sample goes through a decoder: at once or layer by layer, in which chunks, and where the residual stream is.

Decided from sizes alone, never from what happens to be free, so that equal machines compute the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

CPU_CHUNK = 2048
"""Tokens of a chunk on CPU: as fast as more, and what they need stays near the processor."""
GPU_CHUNKS = (8192, 4096, 2048, 1024, 512, 256)
"""Tokens of a chunk on GPUs: the first for which there is memory."""
_USABLE = 0.92
"""Of the memory of a GPU; the rest is the driver's, and lost between allocations."""
_RESERVED = 1 << 30
"""Bytes for logits, cosines and sines, and workspaces of kernels."""


@dataclass(frozen=True)
class ScoringPlan:
    """How a sample is scored.

    Attributes:
        chunk: tokens at a time; a sample of no more goes through the decoder at once.
        on_host: whether the residual stream is in the memory of the host.
    """

    chunk: int
    on_host: bool = False


def plan_scoring(decoder: Any, rows: int, length: int) -> ScoringPlan:
    """The plan for a sample of ``length`` tokens under ``rows`` candidates at a time."""
    weights: dict[torch.device, int] = {}
    for parameter in decoder.parameters():
        weights[parameter.device] = weights.get(parameter.device, 0) + parameter.nbytes
    first = decoder.get_input_embeddings().weight
    if first.device.type != "cuda":
        return ScoringPlan(CPU_CHUNK)
    free = {
        device: int(_USABLE * torch.cuda.get_device_properties(device).total_memory) - held - _RESERVED
        for device, held in weights.items()
        if device.type == "cuda"
    }
    return fit(decoder.config, rows, length, first.element_size(), free, first.device)


def fit(
    config: Any, rows: int, length: int, element: int, free: Mapping[torch.device, int], first: torch.device
) -> ScoringPlan:
    """The largest chunk for which there is memory, with the residual stream on the device if it fits at all.

    Args:
        config: of the decoder.
        element: bytes of a number.
        free: bytes beside the weights, by GPU.
        first: the GPU that would hold the residual stream; each holds the keys and values of one of its layers.
    """
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    pairs = 2 * (getattr(config, "num_key_value_heads", None) or heads) * size
    residual = rows * length * config.hidden_size * element
    left = {device: bytes_ - rows * length * pairs * element for device, bytes_ in free.items()}
    for on_host in (False, True):
        here = min(bytes_ - (residual if device == first and not on_host else 0) for device, bytes_ in left.items())
        for chunk in GPU_CHUNKS:
            if rows * chunk * _work(config, heads * size) * element <= here:
                return ScoringPlan(chunk, on_host)
    return ScoringPlan(GPU_CHUNKS[-1], True)


def _work(config: Any, attention: int) -> int:
    """Numbers that a layer holds for a token of a chunk at its fullest: in its attention, or in its MLP."""
    inner: int = config.intermediate_size
    experts: int = getattr(config, "num_experts_per_tok", None) or 0
    expert = (getattr(config, "moe_intermediate_size", None) or inner) * experts
    # Two hidden states wherever it is; queries, keys, values and outputs, also in the order of another kernel; gate,
    # up, and their product.
    hidden: int = config.hidden_size
    return 2 * hidden + max(8 * attention, 4 * max(inner, expert))
