"""``longrope extend --dry-run``: what would stop a run in its first minute or after days, found beforehand.

Every stage is checked by what checks it when its turn comes, on the same data, with the RoPE that the stages before it
will have made: factors that are not searched yet are stood for by YaRN's, because nothing that is checked depends on
their values.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from longrope.data.mixture import read_mixture
from longrope.data.segments import SegmentStream
from longrope.evaluation.methods import HF, LONG, LONGROPE, open_methods
from longrope.evaluation.open_harness import check_installed, harness_lengths, open_harness
from longrope.evaluation.settings import HarnessSettings
from longrope.evaluation.suites import suite_opener
from longrope.exceptions import InvalidInputError, SettingsError
from longrope.export.two_lists import two_lists
from longrope.finetune.run import check as check_finetuning
from longrope.model.load import ModelSource
from longrope.model.rope_config import SCHEDULE_FILE, ModelRope, read_rope
from longrope.pipeline.extended import extended, with_training_windows
from longrope.pipeline.inputs import model_source, stage_inputs
from longrope.pipeline.plan import plan
from longrope.pipeline.problems import Problems
from longrope.pipeline.room import Room, misfit
from longrope.pipeline.stages import (
    EXPORTED,
    ORIGINAL,
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    ReadjustStage,
    Recipe,
    SearchStage,
    Stage,
)
from longrope.pipeline.standing import Standings, as_begun, standings
from longrope.pipeline.state import RunState
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress
from longrope.search.algorithms import make_algorithm
from longrope.search.readjust import check_windows, readjust_problem
from longrope.search.run import open_samples
from longrope.search.search import check_target, search_problem
from longrope.workers.settings import ExecutionSettings


def dry_run(recipe: Recipe, output: str | Path, progress: Progress | None = None) -> list[str]:
    """Check everything of a recipe that can be checked before hours are spent; nothing is written.

    A model and data that are not on this machine yet are fetched as the stages would do it.

    Args:
        output: the folder that the run would have.

    Returns:
        What would stop the run, a line each with the place in the recipe; empty if nothing is known to.
    """
    progress = progress or Progress()
    with tempfile.TemporaryDirectory(prefix="longrope-dry-run-") as scratch:
        found = _DryRun(recipe, Path(output), Path(scratch), progress)
        found.check()
    return list(dict.fromkeys(found.problems))


class _DryRun:
    """The walk over the stages.

    Attributes:
        problems: found so far.
    """

    def __init__(self, recipe: Recipe, output: Path, scratch: Path, progress: Progress) -> None:
        self.problems = Problems()
        self._recipe, self._output, self._scratch, self._progress = recipe, output, scratch, progress
        self._source: ModelSource = model_source(recipe.model)
        self._opened = cache(self._open)

    def check(self) -> None:
        """Find the problems of every stage."""
        room = Room(self._output)
        with self.problems.noting("output"):
            room.check_folder()
        config = rope = None
        with self.problems.noting("model"):
            config = self._source.load_config()
            rope = read_rope(config, self._source.folder(weights=False))
        if rope is None:
            return
        standing = self._stand()
        # The RoPE that the recipe found, that the model was trained under last, and with factors searched since then.
        self._original = self._trained = self._rope = rope
        for stage in self._recipe.stages:
            self._progress.note(f"checking {stage.name}: {stage.describe()}")
            match stage:
                case SearchStage():
                    self._search(stage)
                case FinetuneStage():
                    self._finetune(stage)
                case ReadjustStage():
                    self._readjust(stage)
                case EvaluateStage():
                    self._evaluate(stage)
                case ExportStage():
                    self._export(stage)
        try:
            planned = plan(self._recipe)
        except InvalidInputError as error:
            if not self.problems:  # otherwise the plan ends at a stage that was refused already
                self.problems.note("output", str(error))
            return
        for stage in self._recipe.stages if standing is None else standing.left():
            too_much = misfit(stage, planned)
            if too_much is not None:
                self.problems.note(stage, too_much)
        room.check_disk(self._recipe, planned, config, standing, self.problems.note)

    def _stand(self) -> Standings | None:
        """What the folder has of the recipe, which is said; None where it has nothing, or that cannot be known."""
        found = None
        with suppress(InvalidInputError, OSError):  # which the folder or a stage is refused for
            folder = self._output.resolve()
            state = RunState.read(folder)
            if state is not None:
                recipe = as_begun(self._recipe, state)
                found = standings(recipe, stage_inputs(recipe), state, folder)
        for line in found.told() if found is not None else ():
            self._progress.note(line)
        return found

    # --- Stages ---

    def _search(self, stage: SearchStage) -> None:
        settings, target = stage.settings, stage.settings.target_length
        with self.problems.noting(stage):
            model = self._model(settings.execution, self._rope)
            with self.problems.noting(stage):
                check_target(model, target)
            samples = open_samples(settings.data, model.tokenizer, target, settings.seed, self._progress)
            if target > self._rope.window:
                problem = search_problem(model, settings, samples=samples)
                chosen, sizes = settings.algorithm, settings.algorithm.sizes(target)
                make_algorithm(chosen.algorithm, problem.space, problem.seeds, problem.ramp, sizes, settings.seed)
        self._rope = extended(self._rope, target)

    def _finetune(self, stage: FinetuneStage) -> None:
        settings, launch, count = stage.settings, stage.launch, len(self.problems)
        schedule = extended(self._rope, settings.seq_length).schedule()
        with self.problems.noting(stage):
            schedule = with_training_windows(stage, self._rope).schedule()
            file = self._scratch / f"{stage.name}.json"
            schedule.save(file)
            device = launch.choose_device()
            plan = launch.resolve(torch.cuda.device_count() if device == "cuda" else 0, settings.zero)
            given = replace(
                settings.on(plan.processes),
                model=self._source.name,
                revision=self._source.revision,
                factors=str(file),
                output=str(self._output / stage.name),
            )
            check_finetuning(given, plan, device, self._progress.note)
            if given.zero:
                if device == "cpu":
                    os.environ.setdefault("DS_ACCELERATOR", "cpu")
                instead = "install it for this torch" + (", or use zero: 0" if given.sp == 1 else "")
                _check_importable("deepspeed", f"zero {given.zero}", instead)
        if len(self.problems) > count:  # which may have been found before the data were read
            with self.problems.noting(stage):
                mixture = read_mixture(settings.data, field=settings.field, split=settings.split)
                next(SegmentStream(mixture, self._source.load_tokenizer(), settings.seq_length, settings.seed))
        self._rope = self._trained = replace(self._rope, policy=schedule, window=schedule.windows[-1].max_length)

    def _readjust(self, stage: ReadjustStage) -> None:
        settings, windows = stage.settings, sorted(set(stage.settings.windows))
        schedule = found = self._rope.schedule()
        with self.problems.noting(stage):
            check_windows(found, windows)
            for window in windows:
                schedule = schedule.with_window(schedule.factors_for(window), window)
        with self.problems.noting(stage):
            model = self._model(settings.execution, self._rope)
            for window in windows:
                samples = open_samples(settings.data, model.tokenizer, window, settings.seed, self._progress)
                readjust_problem(model.rope, found, window, settings.algorithm, samples=samples)
        self._rope = replace(self._rope, policy=schedule)

    def _evaluate(self, stage: EvaluateStage) -> None:
        settings, suite = stage.settings, stage.suite
        with self.problems.noting(stage):
            model = self._model(settings.execution, self._original if stage.model == ORIGINAL else self._trained)
            names = settings.methods or ((HF,) if stage.model == EXPORTED else ())
            factors = None
            if stage.model != ORIGINAL and (not names or {LONGROPE, LONG} & set(names)):
                factors = self._factors_file(stage)
            if isinstance(suite, HarnessSettings):
                check_installed()
                lengths = harness_lengths(suite, factors, model)
                output = str(self._output / stage.name)
                open_harness(suite, replace(settings, lengths=lengths, output=output), model, self._progress)
                return
            if stage.model != EXPORTED:  # whose config is not there yet
                with self.problems.noting(stage):
                    open_methods(model.rope, settings.lengths, factors, names, model.config)
            suite_opener(settings, suite)(model, self._progress)

    def _factors_file(self, stage: Stage) -> str | None:
        """All windows of the model as it is before a stage; None where nothing extends it."""
        if self._rope is self._original and not (self._source.folder(weights=False) / SCHEDULE_FILE).exists():
            return None
        file = self._scratch / f"{stage.name}.json"
        self._rope.schedule().save(file)
        return str(file)

    def _export(self, stage: ExportStage) -> None:
        with self.problems.noting(stage):
            two_lists(self._rope.schedule(), stage.settings.short_window, stage.settings.single_list)

    # --- The model ---

    def _model(self, execution: ExecutionSettings, rope: ModelRope) -> LoadedModel:
        """The model as a stage opens it, with the RoPE that it then has."""
        trusting = replace(execution, trust_remote_code=self._source.trust_remote_code)
        return replace(self._opened(trusting), rope=rope)

    def _open(self, execution: ExecutionSettings) -> LoadedModel:
        model = open_model(self._source.name, execution, self._source.revision)
        check_execution(execution, model.source)
        return model


def check_execution(execution: ExecutionSettings, source: ModelSource) -> None:
    """Refuse evaluators that could not be started here.

    Args:
        source: the model as they load it.

    Raises:
        SettingsError: if something is not installed, or there are fewer GPUs than one evaluator asks for.
    """
    if execution.executor == "ray" and find_spec("ray") is None:
        raise SettingsError("executor 'ray' needs Ray; pip install 'longrope[search]'")
    elsewhere = execution.ray_address is not None
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(source.attention)
    if package is not None and not elsewhere:
        _check_importable(package, f"attention {source.attention!r}", "use sdpa")
    if source.device == "auto" and not elsewhere and find_spec("accelerate") is None:
        raise SettingsError("several GPUs for each evaluator need accelerate; run `pip install accelerate`")
    if source.on_gpu:
        execution.check_gpus(torch.cuda.device_count())


def _check_importable(package: str, what: str, instead: str) -> None:
    """Refuse what needs a package that is not there, or was compiled for another version of torch.

    Args:
        instead: what to do.
    """
    problem = "is not installed"
    if find_spec(package) is not None:
        try:
            import_module(package)
        except Exception as error:
            problem = f"cannot be imported ({' '.join(str(error).split())})"
        else:
            return
    raise SettingsError(f"{what} needs the package {package}, which {problem}; {instead}")
