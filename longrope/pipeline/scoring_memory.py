"""Memory of scoring a sample, and of generating after it: what the present scorer holds where it holds most.

The scorer (longrope/model/score.py) passes the whole sample through a layer at a time and keeps no K and V of others;
logits exist a slice at a time. A model that is spread over several GPUs has other layers on each, so that more GPUs
share its weights, and each still holds all positions of the layer at work.
"""

from __future__ import annotations

from longrope.finetune.model_shape import ModelShape
from longrope.model.score import slice_length
from longrope.pipeline.cost import cache_bytes
from longrope.pipeline.work import Work

LIBRARIES = 2**30
"""CUDA context and cuBLAS."""


def scoring_memory(
    shape: ModelShape, work: Work, number: int, gpus: int = 1, attention: str = "sdpa"
) -> dict[str, float]:
    """Bytes on the GPU that holds most, by what they are for.

    Args:
        number: bytes of a number: 2 in half precision, 4 in float32.
        gpus: that the layers of the model are spread over.
        attention: ``eager`` holds the square of scores of a layer.
    """
    length, hidden = work.length, shape.hidden
    stream = number * hidden * length
    queries, keys, values = (
        number * length * each
        for each in (
            shape.heads * shape.key_dim,
            shape.kv_heads * shape.key_dim,
            shape.kv_heads * shape.value_dim,
        )
    )
    # Embeddings and the layer's input are held all the time; then what the residual and the norm have made of it.
    mlp = 4 * stream + number * length * shape.mlp / hidden  # three tensors of a gated MLP's width
    norm = 4 * stream + 8 * hidden * length  # computed in float32
    rotating = 3 * stream + 2 * queries + 4 * keys + values
    at_work = max(mlp, norm, rotating)
    if attention == "eager":
        scores = (number + 4.0) * shape.heads * length**2
        at_work = max(at_work, 3 * stream + queries + keys + values + scores)
    at_work += 2 * number * shape.key_dim * length  # cos and sin
    elements = min(work.predicted, slice_length(1, shape.vocabulary)) * shape.vocabulary
    logits = stream + elements * (8.0 if number == 4 else number + 8.0)
    found = {
        "weights": float(number) * shape.parameters / gpus,
        "a layer at work" if at_work > logits else "logits": max(at_work, logits),
    }
    if work.written:
        found["K and V of all layers"] = cache_bytes(shape, length, number) / gpus
    return found | {"libraries": float(LIBRARIES)}


def longest_that_fits(shape: ModelShape, work: Work, number: int, memory: float) -> int:
    """Tokens of the longest such text, in steps of 1024, that GPUs of this memory can hold, however many there are."""

    def fits(length: int) -> bool:
        tried = Work(length=length, count=1, predicted=min(work.predicted, length), written=0)
        return sum(scoring_memory(shape, tried, number, gpus=64).values()) <= memory

    low, high = 0, work.length // 1024 + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(1024 * middle) else (low, middle)
    return 1024 * low
