"""The walk over the stages of a recipe: what each needs, given what the stages before it have made of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from longrope.exceptions import InvalidInputError, SettingsError
from longrope.finetune.estimate import check_fits, estimate
from longrope.finetune.hardware import Hardware, peak_flops
from longrope.finetune.model_shape import ModelShape
from longrope.finetune.world import World
from longrope.model.scoring_plan import GPU_CHUNKS
from longrope.pipeline.cost import Utilisation, piece_seconds, rounds_flops, rounds_seconds
from longrope.pipeline.disk import journal_bytes, training_bytes, weights_bytes
from longrope.pipeline.extended import extended, with_training_windows
from longrope.pipeline.gpus import bandwidth_of
from longrope.pipeline.plan import StagePlan
from longrope.pipeline.probe import Measured, Probe
from longrope.pipeline.scoring_fit import Places, ScoringFit, offloads
from longrope.pipeline.stages import (
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    ReadjustStage,
    Recipe,
    SearchStage,
    Stage,
)
from longrope.pipeline.work import Round, Work, evaluation_work, held_out_work, readjust_work, search_work
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress
from longrope.workers.room import gpu_room
from longrope.workers.settings import ExecutionSettings


class StagePlanner:
    """Plans stages in their order.

    Args:
        model: that the recipe starts from; only its config and RoPE are asked.
        hardware: all devices.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: LoadedModel,
        shape: ModelShape,
        hardware: Hardware,
        utilisation: Utilisation,
        measure: bool,
        progress: Progress,
    ) -> None:
        self._model, self._shape = model, shape
        self._windows = model.rope  # with factors that the model was not trained under yet
        self._hardware, self._utilisation = hardware, utilisation
        self._probe = Probe(recipe.model, model, shape, progress) if measure else None

    def plan(self, stage: Stage) -> StagePlan:
        """What the next stage of the recipe needs."""
        found = StagePlan(name=stage.name, kind=stage.kind, does=stage.describe())
        try:
            match stage:
                case SearchStage():
                    found = self._search(found, stage)
                case ReadjustStage():
                    found = self._readjust(found, stage)
                case FinetuneStage():
                    found = self._finetune(found, stage)
                case EvaluateStage():
                    found = self._evaluate(found, stage)
                case ExportStage():
                    found = self._export(found, stage)
        except InvalidInputError as error:
            if self._probe is not None:
                raise
            found = replace(found, flops=None, seconds=None, fits=False, notes=(f"cannot run: {error}",))
        if isinstance(stage, SearchStage):
            self._windows = extended(self._model.rope, stage.settings.target_length)
        elif isinstance(stage, FinetuneStage):
            self._windows = with_training_windows(stage, self._windows)
            self._model = replace(self._model, rope=self._windows)
        return found

    def _search(self, found: StagePlan, stage: SearchStage) -> StagePlan:
        settings = stage.settings
        rounds = search_work(self._model, settings)
        measured = self._probe.search(settings) if self._probe else None
        return self._scoring(found, rounds, settings.execution, measured, journal_bytes(rounds))

    def _readjust(self, found: StagePlan, stage: ReadjustStage) -> StagePlan:
        settings = stage.settings
        windows = readjust_work(replace(self._model, rope=self._windows), settings)
        rounds = [each for window in windows.values() for each in window]
        measured = self._probe.readjust(settings) if self._probe else None
        return self._scoring(found, rounds, settings.execution, measured, journal_bytes(rounds))

    def _evaluate(self, found: StagePlan, stage: EvaluateStage) -> StagePlan:
        work = evaluation_work(stage.settings, stage.suite, self._model.config)
        if work is None:
            return replace(
                found, flops=None, seconds=None, notes=("not estimated: its tasks decide what is to be done",)
            )
        measured = self._probe.evaluate(stage.settings, stage.suite) if self._probe else None
        return self._scoring(found, [work], stage.settings.execution, measured, 0.0)

    def _export(self, found: StagePlan, stage: ExportStage) -> StagePlan:
        size = 0.0 if stage.settings.config_only else weights_bytes(self._shape, self._model.config)
        seconds = self._probe.export(self._windows.schedule(), stage.settings) if self._probe else 0.0
        notes = () if not size or stage.settings.copy else ("weights are linked, not copied, on the same file system",)
        return replace(found, disk=size, seconds=seconds, notes=notes)

    def _scoring(
        self,
        found: StagePlan,
        rounds: Sequence[Round],
        execution: ExecutionSettings,
        measured: Measured | None,
        disk: float,
    ) -> StagePlan:
        """A stage whose work is done by workers that each hold the model."""
        places = self._places(execution)
        count = sum(work.count for each in rounds for work in each)
        answers = any(work.written for each in rounds for work in each)
        found = replace(
            found,
            work=f"{count} {'answers' if answers else 'texts'}",
            flops=rounds_flops(self._shape, rounds),
            devices=places.gpus if places.on_gpu else places.workers,
            seconds=None,
            disk=disk,
        )
        seconds = self._assumed(places)
        if measured is not None:
            found = measured.complete(found, lambda piece: rounds_seconds(rounds, places.workers, piece))
        elif seconds is not None:
            found = replace(found, seconds=rounds_seconds(rounds, places.workers, seconds))
        heaviest = max((work for each in rounds for work in each), key=lambda work: (work.length, work.written))
        memory, misfit = ScoringFit(self._shape, heaviest, places, self._hardware, execution.attention).check()
        free = self._hardware.memory if places.on_gpu else self._hardware.host_memory
        return replace(
            found, memory=memory, memory_free=free, fits=misfit is None, notes=(*filter(None, [misfit]), *places.notes)
        )

    def _places(self, execution: ExecutionSettings) -> Places:
        """Workers, and the GPUs that they hold."""
        hardware = self._hardware
        on_gpu = hardware.memory is not None and execution.device in ("auto", "cuda")
        number = 4 if execution.dtype in ("fp32", "float32") or (execution.dtype == "auto" and not on_gpu) else 2
        if not on_gpu:
            workers = execution.workers or replace(execution, ray_address=None).worker_count(False)
            assert workers is not None
            return Places(workers, 1.0, False, number, (), execution.sp)
        share, notes = execution.gpus(True), []
        if not share:
            raise SettingsError("evaluators have 0 GPUs each; add device: cpu, or leave gpus_per_worker away")
        cluster = execution.executor == "ray"
        room = hardware.devices if cluster else hardware.devices_per_node
        workers = execution.workers or max(gpu_room(room, share), 1)
        places = Places(workers, share, True, number, (), execution.sp, execution.workers is not None)
        if places.gpus > room:
            notes.append(f"asks for {places.gpus} GPUs, more than the {room} that this plan has")
        if not cluster and execution.workers is None and hardware.devices > room:
            notes.append(
                f"the local executor works on one node of {hardware.devices // room}; set executor: ray for all"
            )
        if offloads(self._shape, places, hardware, share):
            notes.append(
                "the weights do not fit on the GPU of a worker: layers are read from main memory or disk for every "
                "text, which is not in the time planned"
            )
        return replace(places, notes=(*notes, *filter(None, [execution.note_on_layers])))

    def _assumed(self, places: Places) -> Callable[[Work], float] | None:
        """Time of a piece where the speed of the GPU is that of its data sheet; None where there is none."""
        name = self._hardware.name
        peak, bandwidth = peak_flops(name, "bf16" if places.number == 2 else "fp32"), bandwidth_of(name)
        if peak is None or not places.on_gpu:
            return None
        reads = bandwidth or peak / 150  # about what GPUs have for each operation that they can do

        def seconds(work: Work) -> float:
            alone = piece_seconds(self._shape, work, places.number, peak, reads, self._utilisation)
            shared = not work.written and work.length > GPU_CHUNKS[0]
            return alone / (places.sp if shared else 1) / min(places.share, 1.0)

        return seconds

    def _finetune(self, found: StagePlan, stage: FinetuneStage) -> StagePlan:
        launch, hardware = stage.launch, self._hardware
        on_gpu = hardware.memory is not None and launch.device != "cpu"
        notes = []
        if on_gpu:
            per_node = launch.gpus or hardware.devices_per_node
            nodes = launch.nodes if launch.nodes > 1 or launch.gpus else hardware.devices // hardware.devices_per_node
            scale = per_node / hardware.devices_per_node
            hardware = replace(
                hardware,
                devices=per_node * nodes,
                devices_per_node=per_node,
                host_memory=int(hardware.host_memory * scale),
            )
            if hardware.devices > self._hardware.devices:
                notes.append(f"asks for {hardware.devices} GPUs, more than the {self._hardware.devices} of this plan")
        else:
            hardware = Hardware.here((launch.gpus or 1) * launch.nodes, launch.gpus or 1, device="cpu")
        precision = stage.settings.precision
        settings = replace(
            stage.settings.on(hardware.devices),
            precision=("bf16" if on_gpu else "fp32") if precision == "auto" else precision,
        )
        World(size=hardware.devices).accumulation(settings.global_batch, settings.micro_batch, settings.sp)
        needs = estimate(self._model.config, settings, hardware)
        misfit = _advice(needs)
        before = held_out_work(settings, self._model.rope.original_length)
        rounds = [before, before] if before else []
        found = replace(
            found,
            work=f"{settings.steps} steps",
            flops=settings.steps * needs.flops.hardware + rounds_flops(self._shape, rounds),
            devices=hardware.devices,
            memory=needs.memory.device_bytes if on_gpu else needs.memory.host_bytes,
            memory_free=hardware.memory if on_gpu else hardware.host_memory,
            disk=training_bytes(needs.shape, self._model.config, settings),
            fits=misfit is None,
            notes=(*filter(None, [misfit]), *notes),
        )
        # Under ZeRO 3 all processes take part in every pass.
        workers = 1 if settings.zero == 3 else hardware.devices
        if self._probe is not None:
            policy = with_training_windows(stage, self._windows).schedule()
            measured = self._probe.finetune(settings, launch, hardware.devices, policy)
            return measured.complete(found, lambda piece: 0.0, settings.steps)
        peak = peak_flops(hardware.name, settings.precision)
        if peak is None or not on_gpu:
            return replace(found, seconds=None)
        share = self._utilisation.of_training(settings.seq_length)
        places = Places(workers, 1.0, True, 2, (), 1)
        scoring = self._assumed(places)
        assert scoring is not None
        seconds = settings.steps * needs.flops.hardware / (peak * hardware.devices * share)
        return replace(found, seconds=seconds + rounds_seconds(rounds, workers, scoring))


def _advice(needs: Any) -> str | None:
    try:
        check_fits(needs)
    except SettingsError as error:
        return f"does not fit: {error}"
    return None
