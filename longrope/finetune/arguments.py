"""The settings of a run in the terms of transformers' Trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from longrope.finetune.deepspeed_config import deepspeed_config, prepare_cpu
from longrope.finetune.meeting import LONGEST_WAIT
from longrope.finetune.precision import Precision
from longrope.finetune.run_record import CHECKPOINTS
from longrope.finetune.settings import FinetuneSettings
from longrope.finetune.world import World

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def training_arguments(
    settings: FinetuneSettings, world: World, precision: Precision, kernel: str, device: str
) -> TrainingArguments:
    """Trainer's arguments; making them starts the process group.

    Args:
        kernel: the attention implementation, as :func:`longrope.finetune.precision.choose_kernel` names it.
        device: ``cuda`` or ``cpu``.

    Raises:
        SettingsError: if the processes cannot share the batch, or DeepSpeed is not installed.
    """
    replicas = world.replicas(settings.sp)
    accumulation = world.accumulation(settings.global_batch, settings.micro_batch, settings.sp)
    deepspeed = deepspeed_config(settings)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(settings.output) / "tensorboard"))
    options: dict[str, Any] = {}
    if deepspeed is not None:
        options["deepspeed"] = deepspeed
        if device == "cpu":
            prepare_cpu()
            options["accelerator_config"] = {"use_configured_state": True}
    elif device == "cpu":
        options["use_cpu"] = True
    if settings.sp > 1:
        options["parallelism_config"] = _sequence_parallelism(settings, replicas, kernel)
    if device == "cuda" and settings.tf32 and torch.cuda.get_device_capability()[0] >= 8:
        options["tf32"] = True
    args = TrainingArguments(
        output_dir=str(Path(settings.output) / CHECKPOINTS),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=settings.warmup,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision.name == "bf16",
        fp16=precision.name == "fp16",
        logging_steps=settings.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen
        save_strategy="steps",
        save_steps=settings.save_steps or settings.steps,  # the last step is saved in any case
        seed=settings.seed,
        report_to=list(settings.report_to) or "none",
        ignore_data_skip=True,  # the data set goes on by itself, which sequence parallelism needs
        remove_unused_columns=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        ddp_timeout=int(LONGEST_WAIT.total_seconds()),
        **options,
    )
    # A process has one device. Alone, Trainer would share its batch among all GPUs that it sees, without autocast.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _sequence_parallelism(settings: FinetuneSettings, replicas: int, kernel: str) -> Any:
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils import DeepSpeedSequenceParallelConfig

    return ParallelismConfig(
        sp_backend="deepspeed",
        sp_size=settings.sp,
        dp_replicate_size=replicas,
        sp_handler=DeepSpeedSequenceParallelConfig(
            sp_seq_length=settings.seq_length,
            sp_seq_length_is_variable=False,
            sp_attn_implementation=kernel,
        ),
    )
