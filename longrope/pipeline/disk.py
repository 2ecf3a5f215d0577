"""What the stages leave in the folder of a run, in bytes."""

from __future__ import annotations

from typing import Any

import torch

from longrope.finetune.model_shape import ModelShape
from longrope.finetune.settings import FinetuneSettings
from longrope.model.score import BLOCK
from longrope.pipeline.work import Round

_NLL = 20  # a number of a journal, as text
_EVENT = 600  # the rest of a line, with the lambdas of a candidate


def journal_bytes(rounds: list[Round]) -> float:
    """Journal of a search: the loss of every block of every sample that is scored."""
    return float(sum(work.count * (_EVENT + _NLL * (work.length // BLOCK + 1)) for each in rounds for work in each))


def training_bytes(shape: ModelShape, config: Any, settings: FinetuneSettings) -> float:
    """Checkpoints, one more than are kept while a new one is written, and the result.

    Args:
        settings: with a definite precision and stage of ZeRO.
    """
    trained = shape.trained(settings.method, settings.adapter.train_embeddings_and_norms)
    moments = 8.0 * trained
    weights = trained if settings.adapts else shape.parameters  # PEFT leaves frozen ones out
    if settings.zero:  # the weights twice: for Trainer, and by DeepSpeed, which adds a copy of trained ones in float32
        number = 4 if settings.precision == "fp32" else 2
        checkpoint = moments + 4.0 * trained + 2 * number * weights
    else:
        checkpoint = moments + 4.0 * weights
    saves = settings.steps if not settings.save_steps else min(settings.save_steps, settings.steps)
    kept = min(settings.save_limit + 1, -(-settings.steps // saves))
    number = 4 if settings.precision == "fp32" else saved_bytes(config)
    adapter = (2 if settings.zero else 4) * trained if settings.adapts else 0  # which is folded into the model
    return kept * checkpoint + float(number * shape.parameters + adapter)


def weights_bytes(shape: ModelShape, config: Any) -> float:
    """The weights of the model in the dtype that its config says."""
    return float(saved_bytes(config)) * shape.parameters


def saved_bytes(config: Any) -> int:
    """Bytes of a number in the weight files of a model."""
    dtype = getattr(config, "dtype", None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 2
