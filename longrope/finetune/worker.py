"""What every process of a run does; any launcher can start it.

Its rank comes from the environment, so that Ray Train, torchrun, the deepspeed launcher, or nobody can have set it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from longrope.data.mixture import read_mixture
from longrope.data.segment_dataset import SegmentDataset, segment_loader
from longrope.data.segments import SegmentStream
from longrope.finetune.arguments import training_arguments
from longrope.finetune.checkpoints import Checkpoint, newest_checkpoint, remove_old, remove_torn, seal
from longrope.finetune.deepspeed_config import gradient_scale
from longrope.finetune.flops import TrainingFlops
from longrope.finetune.hardware import Hardware, peak_flops
from longrope.finetune.held_out import HeldOut, held_out_lengths, held_out_samples
from longrope.finetune.model_shape import ModelShape
from longrope.finetune.monitor import Monitor
from longrope.finetune.policy import training_policy, with_windows_ahead
from longrope.finetune.precision import choose_kernel, choose_precision
from longrope.finetune.prepare import prepare_model
from longrope.finetune.result import save_result
from longrope.finetune.run_record import CHECKPOINTS, RunRecord
from longrope.finetune.trainer import SegmentTrainer
from longrope.finetune.world import World
from longrope.model.load import ModelSource, without_known_keys
from longrope.model.rope_config import SCHEDULE_FILE, read_rope
from longrope.rope.policy import FactorSchedule


@without_known_keys()
def train(folder: str | Path, device: str) -> None:
    """Train the run in ``folder`` from its newest complete checkpoint, or from the beginning, to its last step.

    Every process of the run calls this. When it returns, ``folder`` holds the extended model in ``model``, or what
    was trained of it in ``adapter``.

    Args:
        folder: of a run that :func:`longrope.finetune.run_record.open_run` started; all processes see it.
        device: ``cuda`` or ``cpu``.
    """
    folder = Path(folder)
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate imports DeepSpeed wherever it is installed
    disable_progress_bar()  # of weights that are loaded and written
    record, world = RunRecord.read(folder), World.from_environment()
    settings = record.settings
    precision = choose_precision(settings, device)
    kernel = choose_kernel(settings, precision, device)
    source = ModelSource(
        settings.model, settings.revision, attention=kernel, trust_remote_code=settings.trust_remote_code
    )
    # Before ZeRO 3 is known to transformers, which from then on makes every model in parts, also one without weights.
    flops = TrainingFlops.of(ModelShape.of(source.load_config(), settings.adapter), settings)
    args = training_arguments(settings, world, precision, kernel, device)

    tokenizer = source.load_tokenizer()
    rope = read_rope(source.load_config(), source.folder())
    policy = training_policy(rope, settings)
    set_seed(settings.seed)  # adapters begin with random numbers, the same on every process
    trained = with_windows_ahead(policy, settings)
    prepared = prepare_model(source, settings, trained, precision, world.rank % settings.sp)

    if prepared.model.config.tie_word_embeddings:  # checkpoints hold them once, and Trainer is not to miss them
        prepared.model._keys_to_ignore_on_save = set(prepared.model._tied_weights_keys or ())

    checkpoints = folder / CHECKPOINTS
    checkpoint = newest_checkpoint(checkpoints, record.run, world.size if settings.zero else None)
    mixture = read_mixture(settings.data, field=settings.field, split=settings.split)
    stream = SegmentStream(mixture, tokenizer, settings.seq_length, settings.seed)
    if checkpoint is not None:
        stream.load_state_dict(checkpoint.stream)
    data = SegmentDataset(
        stream,
        rank=world.rank // settings.sp,
        world=world.replicas(settings.sp),
        micro_batch=settings.micro_batch,
        global_batch=settings.global_batch,
        sp_rank=world.rank % settings.sp,
        sp_size=settings.sp,
        windows=settings.windows,
        first_step=0 if checkpoint is None else checkpoint.step,
    )
    monitor = Monitor(
        folder,
        tokens=settings.global_batch * settings.seq_length,
        devices=world.size,
        model_flops=flops.model,
        peak=peak_flops(Hardware.here(device=device).name, precision.name),
    )
    sealing = _Sealing(checkpoints, record.run, settings.save_limit, policy)
    callbacks: list[TrainerCallback] = [sealing]
    if settings.held_out.source is not None:
        lengths = held_out_lengths(settings, rope.original_length)
        callbacks.append(
            HeldOut(
                prepared.attachment,
                prepared.model,
                held_out_samples(settings.held_out, tokenizer, lengths, settings.seed),
                lengths,
                settings.seq_length,
                together=settings.zero == 3,
                autocast=precision.autocast,
                settings=settings.held_out,
                folder=folder,
            )
        )
    trainer = SegmentTrainer(
        segment_loader(data, workers=1),
        gradient_scale(settings, world.size),
        monitor,
        prepared.passes,
        model=prepared.trained,
        args=args,
        callbacks=callbacks,
    )
    sealing.trainer = trainer
    if trainer.is_world_process_zero():
        remove_torn(checkpoints)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.folder))
    save_result(trainer, prepared, source, policy, settings, folder)


class _Sealing(TrainerCallback):
    """Declares checkpoints complete, and removes old ones only then."""

    def __init__(self, folder: Path, run: str, limit: int, policy: FactorSchedule) -> None:
        self._folder, self._run, self._limit, self._policy = folder, run, limit, policy
        self.trainer: SegmentTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run may save and log at other steps than the checkpoint says.
        state.compute_steps(args, args.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = self._folder / f"checkpoint-{state.global_step}"
            self._policy.save(folder / SCHEDULE_FILE)  # its weights may be used by themselves
            seal(Checkpoint(folder, state.global_step, self.trainer.stream_state), self._run, args.world_size)
            remove_old(self._folder, self._limit)
