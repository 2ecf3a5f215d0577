"""Memory of scoring a sample, and of generating after it: what is held where most is.

A sample of more than a chunk is scored layer by layer (longrope/model/layer_by_layer.py): there is its residual stream,
on the GPU or in the memory of the host, one layer's K and V, and a layer at work on a chunk. A shorter one, and every
text that is answered, goes through a layer as a whole. Logits exist a slice at a time. A model that is spread over
several GPUs has other layers on each, so that more GPUs share its weights, and each holds K and V of all positions.
"""

from __future__ import annotations

from longrope.finetune.model_shape import ModelShape
from longrope.model.layer_by_layer import KEPT
from longrope.model.score import slice_length
from longrope.model.scoring_plan import CPU_CHUNK, LayerSizes, ScoringPlan, fit
from longrope.pipeline.cost import cache_bytes
from longrope.pipeline.work import Work

LIBRARIES = 2**30
"""CUDA context and cuBLAS."""
MANY = 64
"""GPUs of a model, where its weights shall not count."""


def scoring_memory(
    shape: ModelShape,
    work: Work,
    number: int,
    gpus: int = 1,
    attention: str = "sdpa",
    memory: float | None = None,
    processes: int = 1,
) -> dict[str, float]:
    """Bytes on the GPU that holds most, by what they are for.

    Args:
        number: bytes of a number: 2 in half precision, 4 in float32.
        gpus: that the layers of the model are spread over.
        attention: ``eager`` holds the square of scores of a layer that takes the text as a whole.
        memory: bytes of a GPU, by which chunks are chosen; None on CPU.
        processes: each with a GPU and all weights, that score the text together.
    """
    weights = float(number) * shape.parameters / gpus
    sizes = _sizes(shape)
    plan = _plan(shape, work, number, gpus, memory, processes)
    if work.written or work.length <= plan.chunk:
        found = _as_a_whole(shape, work, number, attention)
    else:
        logits = min(plan.chunk, slice_length(1, shape.vocabulary)) * shape.vocabulary * _of_a_logit(number)
        found = {
            "the residual stream": 0.0 if plan.on_host else _stream(shape, work, number) / processes,
            "K and V of a layer": float(number) * work.length * sizes.kept,
            "a chunk at work": max(number * plan.chunk * sizes.at_work, logits),
            "cos and sin": min(2.0 * number * shape.key_dim * work.length, KEPT),
        }
    if work.written:
        found["K and V of all layers"] = cache_bytes(shape, work.length, number) / gpus
    return {"weights": weights, **found, "libraries": float(LIBRARIES)}


def main_memory(
    shape: ModelShape, work: Work, number: int, gpus: int = 1, memory: float | None = None, processes: int = 1
) -> float:
    """Bytes of the residual stream of a text, of all its processes, in main memory; 0 where a GPU has room for it.

    Args:
        number, gpus, memory, processes: as those of ``scoring_memory``.
    """
    plan = _plan(shape, work, number, gpus, memory, processes)
    whole = work.written or work.length <= plan.chunk
    return _stream(shape, work, number) if plan.on_host and not whole else 0.0


def _stream(shape: ModelShape, work: Work, number: int) -> float:
    return float(number) * work.length * shape.hidden


def _plan(shape: ModelShape, work: Work, number: int, gpus: int, memory: float | None, processes: int) -> ScoringPlan:
    if memory is None:
        return ScoringPlan(CPU_CHUNK)
    return fit(_sizes(shape), number, work.length, memory - number * shape.parameters / gpus, processes=processes)


def _sizes(shape: ModelShape) -> LayerSizes:
    query, key, value = shape.heads * shape.key_dim, shape.kv_heads * shape.key_dim, shape.kv_heads * shape.value_dim
    return LayerSizes(shape.hidden, query, key, value, shape.mlp / shape.hidden / 3)


def _as_a_whole(shape: ModelShape, work: Work, number: int, attention: str) -> dict[str, float]:
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
    logits = stream + elements * _of_a_logit(number)
    return {"a layer at work" if at_work > logits else "logits": max(at_work, logits)}


def _of_a_logit(number: int) -> float:
    """Bytes: itself in float32, its log-probability, and itself as the model makes it."""
    return 8.0 if number == 4 else number + 8.0


def longest_that_fits(
    shape: ModelShape, work: Work, number: int, memory: float, gpus: int = MANY, processes: int = 1
) -> int:
    """Tokens of the longest such text, in steps of 1024, that GPUs of this memory can hold.

    Args:
        gpus: that the layers are spread over; however many there are, where nothing is said.
        processes: each with a GPU and all weights, that score the text together.
    """

    def fits(length: int) -> bool:
        tried = Work(length=length, count=1, predicted=min(work.predicted, length), written=0)
        parts = scoring_memory(shape, tried, number, gpus, memory=memory, processes=processes)
        return sum(parts.values()) <= memory

    low, high = 0, work.length // 1024 + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(1024 * middle) else (low, middle)
    return 1024 * low
