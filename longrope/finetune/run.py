"""A fine-tuning run from its settings to its result: everything is checked before anything is started."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from longrope.data.mixture import read_mixture
from longrope.data.segments import SegmentStream
from longrope.exceptions import SettingsError
from longrope.files import write_text_atomically
from longrope.finetune.adapters import quantization
from longrope.finetune.checkpoints import newest_checkpoint
from longrope.finetune.deepspeed_config import check_offload, deepspeed_config
from longrope.finetune.estimate import check_fits, describe, estimate
from longrope.finetune.hardware import Hardware
from longrope.finetune.held_out import held_out_lengths, held_out_samples, read_held_out
from longrope.finetune.launch import LaunchSettings, Plan, launch
from longrope.finetune.meeting import first_alone
from longrope.finetune.policy import training_policy, with_windows_ahead
from longrope.finetune.precision import Precision, choose_kernel, choose_precision
from longrope.finetune.prepare import rehearse
from longrope.finetune.run_record import (
    ADAPTER,
    CHECKPOINTS,
    FACTORS_FILE,
    MODEL,
    RUN_FILE,
    RunRecord,
    find_run,
    lock_of,
    open_run,
)
from longrope.finetune.sequence_parallel import check_sequence_parallel
from longrope.finetune.settings import FinetuneSettings
from longrope.finetune.world import World
from longrope.model.load import check_attention, resolve_source
from longrope.model.rope_config import check_attention_span, read_rope
from longrope.model.weights import fingerprint
from longrope.rope.policy import FactorSchedule
from longrope.runs.provenance import versions


@dataclass(frozen=True)
class FinetuneReport:
    """What a run has left.

    Attributes:
        folder: of the run.
        result: the folder of the extended model, or of its adapters.
        held_out: perplexity by length, ``before`` and ``after``; empty where none was measured.
        speaks: whether this process, of several that a launcher started, is the one to speak of it.
    """

    folder: Path
    result: Path
    held_out: dict[str, dict[str, float]]
    speaks: bool = True


def finetune(
    settings: FinetuneSettings,
    launching: LaunchSettings | None = None,
    resume: bool = False,
    tell: Callable[[str], None] = print,
) -> FinetuneReport:
    """Train a model under its new factors, or go on where a run was interrupted.

    Where torchrun or the deepspeed launcher started this process, it is one of the run's; every one calls this.

    Args:
        launching: how processes are started; chosen by what this machine has when not given.
        resume: go on with the run in the output folder if there is one.
        tell: is given lines for the user, by one process only.

    Raises:
        InvalidInputError: if something that was given cannot be used; nothing was started then.
        RunFailedError: if training failed; ``resume`` goes on from the newest checkpoint.
    """
    launching = launching or LaunchSettings()
    device = launching.choose_device()
    plan = launching.resolve(torch.cuda.device_count() if device == "cuda" else 0, settings.zero)
    folder, lock = Path(settings.output).resolve(), lock_of(settings)
    result = folder / (ADAPTER if settings.adapts else MODEL)

    def prepare() -> bool:
        """Whether the run is done already."""
        present = find_run(folder, resume)
        if present is not None:
            lock.acquire()  # before memory is asked for that the run itself may have taken
        trained = present is not None and result.exists() and _is_trained(folder, present)
        asked = with_zero_as_begun(settings).on(plan.processes)
        checked = check(asked, plan, device, tell, to_be_trained=not trained)
        record = open_run(checked.settings, checked.fingerprint, versions(), resume, lock)
        processes = plan.processes if asked.zero else None
        checkpoint = newest_checkpoint(folder / CHECKPOINTS, record.run, processes)
        write_text_atomically(folder / FACTORS_FILE, checked.factors)
        if checkpoint is not None:
            checked.stream.load_state_dict(checkpoint.stream)  # refuses other data
            tell(f"going on from step {checkpoint.step} of {settings.steps}")
        held_out = checked.settings.held_out
        return trained and (held_out.source is None or "after" in read_held_out(folder, held_out))

    try:
        done = first_alone(World.from_environment(), device, prepare)
        if not done:
            launch(folder, device, plan, inherited=lock.descriptors)
    finally:
        lock.release()
    speaks = World.from_environment().rank == 0
    return FinetuneReport(folder, result, read_held_out(folder, RunRecord.read(folder).settings.held_out), speaks)


def with_zero_as_begun(settings: FinetuneSettings) -> FinetuneSettings:
    """The settings with which the run in the output folder, if there is one, goes on.

    Where no stage of ZeRO is asked for, one that has trained without DeepSpeed goes on without it on any number of
    processes: DeepSpeed could not read its checkpoints.
    """
    folder = Path(settings.output)
    if settings.zero is not None or not (folder / RUN_FILE).exists():
        return settings
    record = RunRecord.read(folder)
    begun = record.settings.zero == 0 and newest_checkpoint(folder / CHECKPOINTS, record.run) is not None
    return replace(settings, zero=0) if begun else settings


def _is_trained(folder: Path, record: RunRecord) -> bool:
    """Whether the run has reached its last step."""
    checkpoint = newest_checkpoint(folder / CHECKPOINTS, record.run)
    return checkpoint is not None and checkpoint.step >= record.settings.steps


@dataclass(frozen=True)
class Checked:
    """Settings that can be run.

    Attributes:
        settings: with absolute paths, and the hub model's commit.
        fingerprint: of the weights and the factors.
        factors: content of the factor file.
        stream: of the data.
    """

    settings: FinetuneSettings
    fingerprint: str
    factors: str
    stream: SegmentStream


def check(
    settings: FinetuneSettings, plan: Plan, device: str, tell: Callable[[str], None], *, to_be_trained: bool = True
) -> Checked:
    """Everything that can be known to fail before processes are started.

    Args:
        to_be_trained: whether memory for that has to be there.

    Raises:
        InvalidInputError: if something that was given cannot be used.
    """
    _numbers(settings, device)  # before a model is fetched
    source = resolve_source(
        settings.model,
        device="cpu",
        trust_remote_code=settings.trust_remote_code,
        revision=settings.revision,
        elsewhere=plan.launcher == "ray",
    )
    folder, config = source.folder(), source.load_config()
    rope = read_rope(config, folder)
    policy = training_policy(rope, settings)
    precision = check_settings(settings, plan, device, config, policy)
    if device == "cpu" or torch.cuda.is_available():  # the GPUs of a cluster are seen by its workers alone
        quantization(settings.method, precision.weights, settings.zero or 0)
        check_offload(settings, device)
    _check_reporting(settings.report_to)

    tokenizer = source.load_tokenizer()
    mixture = read_mixture(settings.data, field=settings.field, split=settings.split)
    stream = SegmentStream(mixture, tokenizer, settings.seq_length, settings.seed)
    for window in settings.trained_windows:
        stream.take(min(window, settings.seq_length))
    if settings.held_out.source is not None:
        lengths = held_out_lengths(settings, rope.original_length)
        longest = policy.windows[-1].max_length
        if max(lengths) > longest:
            raise SettingsError(f"held-out length {max(lengths)} is over the {longest} that the factors are meant for")
        held_out_samples(settings.held_out, tokenizer, lengths, settings.seed)

    if not to_be_trained:
        tell(f"trained to its last step, {settings.steps}, already")
    else:
        check_memory(settings, plan, device, config, precision, tell)

    factors = Path(settings.factors).read_text(encoding="utf-8")
    digest = hashlib.sha256(f"{fingerprint(folder)}{factors}".encode()).hexdigest()[:16]
    output = Path(settings.output).resolve()
    held_out = replace(settings.held_out, source=_absolute(settings.held_out.source))
    resolved = replace(
        settings,
        model=source.name if source.revision else _absolute(source.name),
        revision=source.revision,
        factors=str(output / FACTORS_FILE),
        data=_absolute(settings.data),
        output=str(output),
        held_out=held_out,
    )
    return Checked(resolved, digest, factors, stream)


def check_settings(
    settings: FinetuneSettings, plan: Plan, device: str, config: Any, policy: FactorSchedule
) -> Precision:
    """Everything that can be known to fail without the weights and without data.

    Args:
        config: of the model.
        policy: the windows of the extended model.

    Raises:
        InvalidInputError: if the model or the devices cannot have the settings.
    """
    precision, kernel = _numbers(settings, device)
    check_attention(config, kernel, eager=False)
    check_attention_span(config, settings.seq_length)
    check_sequence_parallel(config, settings.sp, kernel, settings.seq_length)
    World(size=plan.processes).accumulation(settings.global_batch, settings.micro_batch, settings.sp)
    deepspeed_config(settings)
    rehearse(config, settings, with_windows_ahead(policy, settings), precision)
    return precision


def _numbers(settings: FinetuneSettings, device: str) -> tuple[Precision, str]:
    """The numbers of a run, and its attention kernel."""
    if find_spec("accelerate") is None:
        raise SettingsError("fine-tuning needs accelerate, and DeepSpeed for ZeRO; pip install longrope[finetune]")
    precision = choose_precision(settings, device)
    return precision, choose_kernel(settings, precision, device)


def check_memory(
    settings: FinetuneSettings,
    plan: Plan,
    device: str,
    config: Any,
    precision: Precision,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Tell what a run will need of memory and time.

    Raises:
        SettingsError: if there is not enough memory; of a cluster that is not known.
    """
    if device == "cuda" and not torch.cuda.is_available():  # those of the cluster, which this machine does not know
        tell("memory and duration: not estimated, since this machine has no GPU")
        return
    hardware = Hardware.here(plan.processes, plan.per_node, device)
    found = estimate(config, replace(settings, precision=precision.name), hardware)
    for line in describe(found):
        tell(line)
    check_fits(found)


def _check_reporting(names: tuple[str, ...]) -> None:
    """Raise SettingsError unless Trainer can report to every one of ``names``."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    available = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise SettingsError(f"report-to {name!r} is not known; use {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in available:
            raise SettingsError(f"report-to {name!r} is not installed; pip install {name}, or leave it away")


def _absolute(path: str | None) -> Any:
    """Workers may run in folders of their own; a hub id stays as it is."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path
