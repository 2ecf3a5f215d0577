"""What a run will need of memory and time, said before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from longrope.exceptions import InvalidInputError, SettingsError
from longrope.finetune.flops import TrainingFlops
from longrope.finetune.hardware import Hardware, peak_flops
from longrope.finetune.memory import Memory, training_memory
from longrope.finetune.model_shape import ModelShape
from longrope.finetune.sequence_parallel import check_sequence_parallel
from longrope.finetune.settings import FinetuneSettings
from longrope.finetune.world import World
from longrope.lengths import format_length
from longrope.sizes import GIB, format_size

UTILISATION = (0.2, 0.5)
"""Share of the peak that published runs of long segments reach, recomputation counted as work.

torchtitan 22% (8B, 128k, 8 H100), DeepSpeed ALST 30% (8B, 1.1M, 8 H100), EasyContext 33% (7B, 128k) and 50% (64k, 8
A100), worked out from their tokens/s.
"""
# What is advised: positions of an MLP at a time, processes of a sequence, and no segment shorter than this.
_TILE = 4096
_SP = (2, 4, 8, 16, 32, 64)
_SHORTEST = 1024


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        memory: at the peak of a step.
        flops: of an optimizer step, all devices together.
        seconds: of the run, from fast to slow; None where the devices' speed is not known.
    """

    config: Any
    settings: FinetuneSettings
    hardware: Hardware
    shape: ModelShape
    memory: Memory
    flops: TrainingFlops
    seconds: tuple[float, float] | None

    @property
    def tokens(self) -> int:
        """Tokens of the run."""
        return self.settings.steps * self.settings.global_batch * self.settings.seq_length

    def changed(self, settings: FinetuneSettings) -> Estimate:
        """The same model on the same devices with other settings."""
        return Estimate.of(self.config, settings, self.hardware, self.shape)

    @classmethod
    def of(cls, config: Any, settings: FinetuneSettings, hardware: Hardware, shape: ModelShape) -> Estimate:
        """The estimate for a model whose sizes are known."""
        flops = TrainingFlops.of(shape, settings)
        peak = peak_flops(hardware.name, settings.precision)
        seconds = None
        if peak is not None:
            slow, fast = (flops.hardware * settings.steps / (peak * hardware.devices * each) for each in UTILISATION)
            seconds = fast, slow
        memory = training_memory(shape, settings, hardware)
        return cls(config, settings, hardware, shape, memory, flops, seconds)


def estimate(config: Any, settings: FinetuneSettings, hardware: Hardware) -> Estimate:
    """Memory and duration of a run.

    Args:
        config: the transformers config of the model.
        settings: with a definite stage of ZeRO, see :meth:`FinetuneSettings.on`.
    """
    return Estimate.of(config, settings, hardware, ModelShape.of(config, settings.adapter))


def describe(found: Estimate) -> list[str]:
    """The estimate in lines, as they are printed before the first step."""
    memory, settings, hardware = found.memory, found.settings, found.hardware
    trained = found.shape.trained(settings.method, settings.adapter.train_embeddings_and_norms)
    lines = [
        f"parameters: {format_count(found.shape.parameters)}, trained: {format_count(trained)}; tokens of the run: "
        f"{format_count(found.tokens)}"
    ]
    for where, parts, total, free in (
        ("each GPU", memory.device, memory.device_bytes, hardware.memory),
        ("each host", memory.host, memory.host_bytes, hardware.host_memory),
    ):
        if parts and free is not None:
            lines.append(f"memory of {where}, estimated: {format_size(total)} of {format_size(free)} free")
            lines += [f"  {name:<30}{format_size(size):>12}" for name, size in parts.items() if abs(size) >= GIB / 100]
    if found.seconds is None:
        lines.append("duration: not estimated, shown after the first steps")
    else:
        fast, slow = found.seconds
        low, high = UTILISATION
        lines.append(
            f"duration, estimated: {format_duration(fast)} to {format_duration(slow)} ({high:.0%} to {low:.0%} of the "
            f"peak of {hardware.devices} x {hardware.name}, assumed)"
        )
    return lines


def check_fits(found: Estimate) -> None:
    """Stop a run whose memory cannot suffice.

    Raises:
        SettingsError: says what is missing, and the first change of the settings that would make it fit.
    """
    if _fits(found):
        return
    hardware, memory = found.hardware, found.memory
    if hardware.memory is not None and memory.device_bytes > hardware.memory:
        where, needed, free = "GPU", memory.device_bytes, hardware.memory
    else:
        where, needed, free = "host", memory.host_bytes, hardware.host_memory
    what = f"this run needs about {format_size(needed)} on each {where}, and {format_size(free)} are free"
    raise SettingsError(f"{what}; {_advice(found)}")


def format_duration(seconds: float) -> str:
    """Seconds as people say them: ``45 s``, ``2 min 24 s``, ``12 min``, ``5.5 h``, ``3.2 days``."""
    for size, name in ((86400.0, "days"), (3600.0, "h")):
        if seconds >= size * 1.5:
            return f"{seconds / size:.1f} {name}"
    if seconds >= 600:
        return f"{seconds / 60:.0f} min"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if seconds >= 90 else f"{seconds:.0f} s"


def _fits(found: Estimate) -> bool:
    device, hardware = found.memory.device_bytes, found.hardware
    return (hardware.memory is None or device <= hardware.memory) and found.memory.host_bytes <= hardware.host_memory


def _advice(found: Estimate) -> str:
    """What to change: first what leaves the result as it is, then the method, the length at last."""
    starts = [found.settings]
    if not found.settings.adapts:
        starts.append(replace(found.settings, method="lora"))
    lengths = (found.settings.seq_length >> halvings for halvings in range(1, 32))
    starts += [replace(found.settings, seq_length=length, group=0) for length in lengths if length >= _SHORTEST]
    for start in starts:
        enough = _squeezed(found.changed(start))
        if enough is not None:
            return f"{_options(found.settings, enough.settings)} would make it fit"
    return "no settings make it fit here; use GPUs with more memory, or more of them"


def _squeezed(found: Estimate) -> Estimate | None:
    """The run with the first change that is enough, or with one after the other that helps; None if all are too few."""
    while not _fits(found):
        changed = [found.changed(settings) for settings in _changes(found)]
        enough = (each for each in changed if _fits(each))
        better = (each for each in changed if _excess(each) < _excess(found))
        step = next(enough, None) or next(better, None)
        if step is None:
            return None
        found = step
    return found


def _excess(found: Estimate) -> float:
    """Bytes that there are too few."""
    hardware, memory = found.hardware, found.memory
    device = 0.0 if hardware.memory is None else max(memory.device_bytes - hardware.memory, 0.0)
    return device + max(memory.host_bytes - hardware.host_memory, 0.0)


def _options(before: FinetuneSettings, after: FinetuneSettings) -> str:
    """The options of the command line in which two settings differ."""
    memory = after.memory
    every = {
        f"--micro-batch {after.micro_batch}": before.micro_batch != after.micro_batch,
        "--checkpointing": before.memory.checkpoint_activations != memory.checkpoint_activations,
        "--tile-loss 0": before.memory.tile_loss != memory.tile_loss,
        f"--tile-mlp {format_length(memory.tile_mlp or 1)}": before.memory.tile_mlp != memory.tile_mlp,
        "--offload-activations": before.memory.offload_activations != memory.offload_activations,
        f"--zero {after.zero}": before.zero != after.zero,
        f"--offload {after.offload}": before.offload != after.offload,
        f"--sp {after.sp}": before.sp != after.sp,
        f"--method {after.method}": before.method != after.method,
        f"--seq-length {format_length(after.seq_length)}": before.seq_length != after.seq_length,
    }
    return " ".join(option for option, differs in every.items() if differs)


def _changes(found: Estimate) -> Iterator[FinetuneSettings]:
    """Settings with one change that saves memory and trains the same; those that cost least come first."""
    settings, memory = found.settings, found.settings.memory
    zero = settings.zero or 0
    changes: list[dict[str, Any]] = [
        {"micro_batch": 1},
        {"memory": replace(memory, checkpoint_activations=True)},
        {"memory": replace(memory, tile_loss=0)},
    ]
    if not memory.tile_mlp and settings.seq_length // settings.sp > _TILE:
        changes.append({"memory": replace(memory, tile_mlp=_TILE)})
    if memory.checkpoint_activations:
        changes.append({"memory": replace(memory, offload_activations=True)})
    changes += [{"zero": stage} for stage in range(zero + 1, 4)]
    if settings.offload == "none":
        changes.append({"zero": max(zero, 2), "offload": "optimizer"})
    changes.append({"zero": 3, "offload": "all"})
    changes += [{"zero": max(zero, 1), "sp": sp} for sp in _SP if sp > settings.sp]
    for change in changes:
        try:
            changed = replace(settings, **change)
            _check(found, changed)
        except InvalidInputError:  # two settings that exclude each other, or the model
            continue
        if changed != settings:
            yield changed


def _check(found: Estimate, settings: FinetuneSettings) -> None:
    """Raise InvalidInputError where the model or the devices cannot have the settings."""
    kernel = "sdpa" if settings.kernel == "auto" else settings.kernel
    check_sequence_parallel(found.config, settings.sp, kernel, settings.seq_length)
    World(size=found.hardware.devices).accumulation(settings.global_batch, settings.micro_batch, settings.sp)


def format_count(number: float) -> str:
    """A count in three digits: ``5.34M``, ``6.74B``."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:.0f}"
