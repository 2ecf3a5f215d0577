"""How a sample goes through a decoder: at once or layer by layer, in which chunks, and where the residual stream is.

Decided from sizes alone, never from what happens to be free, so that equal machines compute the same bits; but where
memory runs out all the same, chunks are halved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from longrope.model.offloading import computes_on

CPU_CHUNK = 2048
"""Tokens of a chunk on CPU: as fast as more, and what they need stays near the processor."""
GPU_CHUNKS = (8192, 4096, 2048, 1024, 512, 256)
"""Tokens of a chunk on GPUs: the first for which there is memory."""
IN_TRAINING = 2048
"""Tokens of a chunk beside gradients and an optimizer, whose memory is not known here; a step takes far more."""
SHARE = "longrope_share_of_gpu"
"""The attribute of a model that shares its GPU with those of other processes: its part."""
USABLE = 0.92
"""Of the memory beside the weights; the rest is lost between allocations."""
RESERVED = 1 << 30
"""Bytes for the driver, workspaces of kernels, logits, cosines and sines."""


@dataclass(frozen=True)
class ScoringPlan:
    """How a sample is scored.

    Attributes:
        chunk: tokens at a time; a sample of no more goes through the decoder at once.
        on_host: whether the residual stream is in the memory of the host.
    """

    chunk: int
    on_host: bool = False


@dataclass(frozen=True)
class LayerSizes:
    """Numbers that a decoder layer makes of a token.

    Attributes:
        hidden: of the residual stream.
        query: of all heads; as many as go into the output projection, or more.
        key: of all heads that have keys of their own.
        value: likewise.
        inner: width of the MLP, or of all experts together that a token goes to.
    """

    hidden: int
    query: int
    key: int
    value: int
    inner: float

    @classmethod
    def of(cls, config: Any) -> LayerSizes:
        """Those of the model of a transformers config."""
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        size = getattr(config, "qk_head_dim", None) or size  # with MLA
        value = getattr(config, "v_head_dim", None) or size
        values = groups * value
        if getattr(config, "kv_lora_rank", None):
            # Latents are kept, and keys and values of all of the past made of them for every chunk, keys in two steps.
            values = config.kv_lora_rank + config.qk_rope_head_dim + heads * (value + config.qk_nope_head_dim)
        experts = getattr(config, "num_experts_per_tok", None) or 0
        # Tokens are copied for each of their experts, on the way in and on the way out.
        expert = (getattr(config, "moe_intermediate_size", None) or config.intermediate_size) + config.hidden_size
        inner = max(config.intermediate_size, expert * experts)
        return cls(config.hidden_size, heads * size, groups * size, values, inner)

    @property
    def kept(self) -> int:
        """Of a layer, for every token of the sample."""
        return self.key + self.value

    @property
    def at_work(self) -> float:
        """For a token of the chunk in a layer, where it holds most: in its MLP, or before or in its attention."""
        return max(
            3 * self.hidden + 3 * self.inner,
            2 * self.hidden + 2 * self.query + 4 * self.key + self.value,
            3 * self.hidden + 3 * self.query + self.key + self.value,
        )


def plan_scoring(model: Any, decoder: Any, rows: int, length: int, processes: int = 1) -> ScoringPlan:
    """The plan for a sample under ``rows`` candidates at a time.

    Args:
        model: all of it, whose weights take memory.
        decoder: its part that turns token ids into hidden states.
        length: tokens of the sample.
        processes: that work on it together, each with the model.
    """
    embeddings = decoder.get_input_embeddings()
    first = computes_on(embeddings)
    if first.type != "cuda":
        return ScoringPlan(CPU_CHUNK)
    if any(parameter.requires_grad for parameter in model.parameters()):
        return ScoringPlan(IN_TRAINING)
    weights = {first: 0}
    for parameter in model.parameters():
        weights[parameter.device] = weights.get(parameter.device, 0) + parameter.nbytes
    # Of layers that are kept elsewhere one is on the device.
    weights[first] += max(sum(each.nbytes for each in layer.parameters() if each.is_meta) for layer in decoder.layers)
    share = getattr(model, SHARE, 1.0)
    free = {
        device: share * torch.cuda.get_device_properties(device).total_memory - held
        for device, held in weights.items()
        if device.type == "cuda"
    }
    others = [bytes_ for device, bytes_ in free.items() if device != first]
    number = rows * embeddings.weight.element_size()
    return fit(LayerSizes.of(decoder.config), number, length, free[first], min(others, default=None), processes)


def fit(
    sizes: LayerSizes, number: int, length: int, free: float, others: float | None = None, processes: int = 1
) -> ScoringPlan:
    """The largest chunk for which there is memory, with the residual stream on the device if it fits at all.

    Args:
        number: bytes of a number, of all rows together.
        free: bytes beside the weights on the GPU that would hold the residual stream.
        others: the least of the other GPUs that layers are spread over; each holds keys and values of a layer.
        processes: that share the residual stream of a sample.
    """
    for on_host in (False, True):
        for chunk in GPU_CHUNKS:
            # Processes send each other their parts one by one.
            sent = math.ceil(length / 2 / processes) * sizes.key if processes > 1 else 0
            spread = number * (length * sizes.kept + sent + chunk * sizes.at_work) + RESERVED
            stream = 0 if on_host else number * math.ceil(length / processes) * sizes.hidden
            if spread + stream <= USABLE * free and (others is None or spread <= USABLE * others):
                return ScoringPlan(chunk, on_host)
    return ScoringPlan(GPU_CHUNKS[-1], True)
