"""What a run leaves behind when it is done: the extended model, or the adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from longrope.export.extended import save_extended
from longrope.finetune.adapters import save_adapter
from longrope.finetune.attention_projections import attention_projections
from longrope.finetune.prepare import PreparedModel
from longrope.finetune.run_record import ADAPTER, MODEL
from longrope.finetune.settings import FinetuneSettings
from longrope.model.load import ModelSource
from longrope.rope.policy import FactorSchedule

_ATTENTION = "The projections of attention were fine-tuned under the factors; all other weights are the model's."


def save_result(
    trainer: Any,
    prepared: PreparedModel,
    source: ModelSource,
    policy: FactorSchedule,
    settings: FinetuneSettings,
    folder: Path,
) -> None:
    """Write ``model`` or ``adapter`` below ``folder``; every process calls this, the first one writes.

    Weights that were trained in float32 throughout are saved so, others in the dtype of the model they came from.
    """
    # Under ZeRO 3 every process gives its part. Elsewhere the model holds its weights itself.
    gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped) if settings.zero == 3 else None
    if trainer.is_world_process_zero():
        output = folder / (ADAPTER if settings.adapts else MODEL)
        shutil.rmtree(output, ignore_errors=True)  # of a run that was resumed when it was done
        if settings.adapts:
            save_adapter(prepared.trained, source, policy, output, state_dict=gathered)
        else:
            part: dict[str, Any] = {}
            if settings.method == "attention":
                part = {"trained": _trained(prepared.model), "told": _ATTENTION}
            save_extended(
                prepared.model,
                source,
                policy,
                output,
                state_dict=gathered,
                dtype=torch.float32 if prepared.model.dtype == torch.float32 and not _autocast(trainer) else None,
                **part,
            )
    trainer.accelerator.wait_for_everyone()


def _trained(model: Any) -> list[str]:
    """What the names of the weights end with that ``attention`` trains."""
    layers = attention_projections(model).items()
    return [f"{name}.{parameter}" for name, layer in layers for parameter, _ in layer.named_parameters()]


def _autocast(trainer: Any) -> bool:
    return bool(trainer.args.bf16 or trainer.args.fp16)
