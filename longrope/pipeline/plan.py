"""What a recipe will cost, before anything of it is run: operations, time, memory and disk of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longrope.exceptions import SettingsError
from longrope.finetune.hardware import Hardware, peak_flops
from longrope.finetune.model_shape import ModelShape
from longrope.model.rope_config import read_rope
from longrope.pipeline.cost import Utilisation
from longrope.pipeline.gpus import HOST_PER_GPU, gpu_hardware
from longrope.pipeline.inputs import model_source
from longrope.pipeline.stages import Recipe
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage needs.

    Attributes:
        does: in a few words.
        work: what is counted: texts that are scored or answered, or optimizer steps.
        flops: operations in all, recomputation included; None where they are not known beforehand.
        devices: GPUs that the stage holds; workers or processes on a CPU.
        seconds: wall time; None where the speed is not known.
        fastest, slowest: the same at the best and the worst speed seen while it was measured.
        memory: bytes on the GPU that holds most; on a CPU, of the host.
        memory_free: bytes that it has; None where that is not known.
        disk: bytes that the stage leaves in the folder of the run.
        fits: whether it can run as the recipe says.
        notes: what does not fit and what to change, and what else is to be known of the figures.
    """

    name: str
    kind: str
    does: str
    work: str = ""
    flops: float | None = 0.0
    devices: int = 0
    seconds: float | None = 0.0
    fastest: float | None = None
    slowest: float | None = None
    memory: float = 0.0
    memory_free: float | None = None
    disk: float = 0.0
    fits: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe needs.

    Attributes:
        device: the name of the GPU, or ``cpu``.
        devices: GPUs of the plan; stages may hold fewer, or ask for more.
        utilisation: what is assumed of the devices; None where nothing was, or time was measured.
        notes: assumptions that hold for all stages.
    """

    recipe: str
    model: str
    parameters: int
    device: str
    devices: int
    utilisation: Utilisation | None
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Of all stages, as far as they are known."""
        return sum(stage.flops or 0.0 for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages, one after the other; None unless that of each is known."""
        return _sum([stage.seconds for stage in self.stages])

    @property
    def gpu_hours(self) -> float | None:
        """Of all stages; None unless that of each is known, and on a CPU."""
        return _sum([self.stage_gpu_hours(stage) for stage in self.stages])

    @property
    def disk(self) -> float:
        """Bytes of all stages."""
        return sum(stage.disk for stage in self.stages)

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    def stage_gpu_hours(self, stage: StagePlan) -> float | None:
        """GPUs that the stage holds times its hours."""
        if stage.seconds is None or self.device == "cpu":
            return None
        return stage.seconds * stage.devices / 3600

    def to_dict(self) -> dict[str, Any]:
        """The plan and its totals in the types of JSON."""
        found = asdict(self)
        for stage, given in zip(self.stages, found["stages"], strict=True):
            given["gpu_hours"] = self.stage_gpu_hours(stage)
        total = {name: getattr(self, name) for name in ("flops", "seconds", "gpu_hours", "disk", "fits")}
        return {**found, "total": total}


def plan(
    recipe: Recipe,
    gpu: str | None = None,
    gpus: int | None = None,
    nodes: int = 1,
    *,
    host_memory: float | None = None,
    utilisation: Utilisation | None = None,
    measure: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Work out what a recipe costs. Of the model only its config is read, unless something is to be measured.

    Args:
        gpu: a name of :data:`longrope.pipeline.gpus.GPUS`; the GPUs of this machine, or its CPU, when not given.
        gpus: of each node, where a GPU is named; 1 when not given. Stages that say themselves how many they take have
            as many.
        nodes: machines.
        host_memory: GiB of main memory of each node, where a GPU is named.
        utilisation: of named GPUs, in place of what is assumed.
        measure: run a short piece of each stage on this machine, see :mod:`longrope.pipeline.probe`.

    Raises:
        InvalidInputError: if the model or the GPU is not known, or the arguments exclude each other.
        RunFailedError: if a piece that is to be measured fails.
    """
    from longrope.pipeline.stage_plans import StagePlanner

    hardware = _hardware(gpu, gpus, nodes, host_memory, utilisation, measure)
    source = model_source(recipe.model)
    config = source.load_config()
    rope = read_rope(config, source.folder(weights=False))
    shape = ModelShape.of(config)
    assumed = utilisation or Utilisation()
    planner = StagePlanner(
        recipe=recipe,
        model=LoadedModel(source, rope, None, "", config),
        shape=shape,
        hardware=hardware,
        utilisation=assumed,
        measure=measure,
        progress=progress or Progress(),
    )
    stages = tuple(planner.plan(stage) for stage in recipe.stages)
    known = not measure and peak_flops(hardware.name, "bf16") is not None
    return Plan(
        recipe=recipe.name,
        model=recipe.model.name,
        parameters=shape.parameters,
        device=hardware.name or "cpu",
        devices=hardware.devices,
        utilisation=assumed if known else None,
        stages=stages,
        notes=tuple(_notes(hardware, assumed, gpu is not None and host_memory is None, measure, stages)),
    )


def _hardware(
    gpu: str | None,
    gpus: int | None,
    nodes: int,
    host_memory: float | None,
    utilisation: Utilisation | None,
    measure: bool,
) -> Hardware:
    for name, value in (("gpus", gpus), ("nodes", nodes), ("host memory", host_memory)):
        if value is not None and value <= 0:
            raise SettingsError(f"{name} is {value:g}; give more than 0")
    if gpu is not None:
        if measure:
            raise SettingsError(f"measuring is done on this machine, which gpu {gpu!r} says nothing of; leave one away")
        return gpu_hardware(gpu, gpus or 1, nodes, host_memory)
    if host_memory is not None or nodes > 1:
        raise SettingsError("nodes and host memory are those of machines with a GPU; add --gpu, such as --gpu h100")

    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is not None and not here:
        raise SettingsError(f"gpus is {gpus}, but this machine has none and no gpu is named; add --gpu h100")
    if measure and utilisation is not None:
        raise SettingsError("utilisation is assumed where time is not measured; leave it or measuring away")
    return Hardware.here(gpus or max(here, 1))


def _notes(
    hardware: Hardware,
    utilisation: Utilisation,
    host_assumed: bool,
    measured: bool,
    stages: Sequence[StagePlan],
) -> list[str]:
    """What holds for all stages."""
    notes = []
    peak = peak_flops(hardware.name, "bf16")
    if measured:
        notes.append(
            "durations: short pieces of the work measured on this machine, times their number; in brackets from the "
            "fastest to the slowest piece"
        )
    elif hardware.memory is None:
        notes.append("duration: unknown on a CPU, add --measure")
    elif peak is None:
        notes.append(f"duration: the speed of {hardware.name} is not known; add --measure on such a machine")
    else:
        notes += [
            f"assumed of the {peak / 1e12:.0f} TFLOP/s of each {hardware.name}: {utilisation.scoring:.0%} in scoring, "
            f"{utilisation.training:.0%} in training ({utilisation.short_training:.0%} in segments up to 64k), with "
            f"recomputation counted; {utilisation.generation:.0%} of its memory's bandwidth in generation; change it "
            "by --utilisation",
            "not counted: starting workers, reading data, loading and writing weights",
        ]
    if any(stage.seconds is not None and not stage.fits for stage in stages):
        notes.append("the time of what does not fit is what it would take on such GPUs with enough memory")
    if host_assumed:
        notes.append(f"assumed: {HOST_PER_GPU} GiB of main memory for each GPU of a node; change it by --host-memory")
    return notes


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
