"""``longrope readjust``: factors for short windows of an extended model (arXiv 2402.13753, section 3.4).

Factors meant for a long window cost quality on short texts. The same search at each short window, with a smaller
largest lambda, finds factors for texts up to that length; each becomes a window of the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from longrope.exceptions import FactorsError, SettingsError
from longrope.lengths import format_length
from longrope.model.rope_config import ModelRope
from longrope.rope.attention_factor import resolve
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, FixedFactors, Window, load_factors
from longrope.runs.model import LoadedModel, numeric_settings, open_model
from longrope.runs.progress import Progress
from longrope.runs.provenance import versions
from longrope.schema import STRICT, Lengths
from longrope.search.algorithms import make_algorithm
from longrope.search.baselines import Baseline, both_attention_factors
from longrope.search.candidate import Candidate
from longrope.search.comparison import PairedDifference, paired_difference, table
from longrope.search.run import (
    FACTORS_FILE,
    TABLE_FILE,
    WINDOW_JOURNALS,
    announce,
    describe_samples,
    open_samples,
    open_scorer,
    refuse_other_run,
    sample_digests,
)
from longrope.search.search import ATTENTION_SPAN, algorithm_settings, plan_of, results_record, space_settings
from longrope.search.settings import SEARCHED_ATTENTION, AlgorithmSettings, DataSettings
from longrope.search.solve import Problem, Solution, solve
from longrope.search.space import SearchSpace
from longrope.workers.settings import ExecutionSettings

READJUST_LAMBDA_MAX_SHARE = 0.5
"""Largest lambda of a readjustment over that of the long factors; the paper reduces it, but gives no figure."""


@dataclass(frozen=True, kw_only=True)
class ReadjustSettings:
    """A readjustment of one model at several short windows.

    Attributes:
        model: a folder or a hub id.
        output: folder that receives factors.json (a schedule), and a folder with the run of each window.
        windows: lengths to search at, in tokens; may be shorter than the original window.
        factors: the extended model's factors or schedule, where the model folder does not hold them.
        algorithm: ``attention_factor`` "present" (the default here) keeps that of the long factors, because plain
            transformers applies one to all windows.
    """

    __pydantic_config__ = STRICT

    model: str
    output: str
    windows: Lengths
    data: DataSettings
    factors: str | None = None
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    algorithm: AlgorithmSettings = field(default_factory=lambda: AlgorithmSettings(attention_factor="present"))
    seed: int = 0
    revision: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.algorithm.attention_factor == "auto":
            raise SettingsError("attention_factor 'auto' is for a search; leave it away, or give present or a number")


@dataclass(frozen=True)
class WindowReport:
    """One readjusted window.

    Attributes:
        against_long: held-out paired difference of the readjusted from the long factors; None without two documents.
    """

    factors: RopeFactors
    table: pd.DataFrame
    solution: Solution
    against_long: PairedDifference | None


@dataclass(frozen=True)
class ReadjustReport:
    """The schedule with its new windows, also in ``folder / "factors.json"``."""

    schedule: FactorSchedule
    folder: Path
    windows: tuple[WindowReport, ...]


def readjust(settings: ReadjustSettings, progress: Progress | None = None) -> ReadjustReport:
    """Search factors for each short window and add them to the model's schedule.

    Raises:
        InvalidInputError: for input that cannot be used; nothing is written then.
        RunFailedError: if the workers or the model fail; what was evaluated stays in the journals.
    """
    progress = progress or Progress()
    folder = Path(settings.output)
    windows = sorted(set(settings.windows))
    if not windows:
        raise SettingsError("no windows given; name at least one length, for example --windows 4k,8k")
    refuse_other_run(folder, settings.resume, WINDOW_JOURNALS)
    model = open_model(settings.model, settings.execution, settings.revision)
    schedule = _present_schedule(model.rope, settings.factors)
    check_windows(schedule, windows)
    long = schedule.windows[-1]
    drawn = [open_samples(settings.data, model.tokenizer, window, settings.seed, progress) for window in windows]

    reports = []
    for window, samples in zip(windows, drawn, strict=True):
        problem = readjust_problem(model.rope, schedule, window, settings.algorithm, samples=samples)
        report = _readjust_window(model, long, problem, settings, folder / f"window-{format_length(window)}", progress)
        schedule = schedule.with_window(report.factors, window)
        reports.append(report)
    schedule.save(folder / FACTORS_FILE)
    pd.concat([report.table for report in reports], keys=[format_length(w) for w in windows], names=["window"]).to_csv(
        folder / TABLE_FILE
    )
    return ReadjustReport(schedule, folder, tuple(reports))


def check_windows(schedule: FactorSchedule, windows: Sequence[int]) -> None:
    """Raise SettingsError if there is nothing to readjust, or a window is not shorter than that of the long factors."""
    long = schedule.windows[-1]
    if all(value == 1 for value in long.factors.lambdas):
        raise SettingsError(
            "the model is not extended: its RoPE is plain, so there is nothing to readjust; give the factors of its "
            "extension by --factors, or the folder that `longrope apply` wrote"
        )
    for window in windows:
        if window >= long.max_length:
            raise SettingsError(
                f"window {format_length(window)} is not shorter than the present window of "
                f"{format_length(long.max_length)}; use `longrope search` to extend it"
            )


def readjust_problem(
    rope: ModelRope, schedule: FactorSchedule, window: int, chosen: AlgorithmSettings, **fields: Any
) -> Problem:
    """The search at one short window: from plain RoPE, the schedule's present factors there and its long factors."""
    long = schedule.windows[-1].factors
    searched = chosen.attention_factor == SEARCHED_ATTENTION
    rule = "present" if searched else chosen.attention_factor
    attention_factor = resolve(rule, long.ratio, long.original_length, long.attention_factor)
    largest = max(long.lambdas)
    lambda_max = chosen.lambda_max if chosen.lambda_max is not None else max(1.0, READJUST_LAMBDA_MAX_SHARE * largest)
    methods = (
        Baseline("identity", FixedFactors(rope.identity())),
        Baseline("present", FixedFactors(schedule.factors_for(window))),
        Baseline("long", FixedFactors(long)),
    )
    space = SearchSpace(
        pairs=len(long.lambdas),
        lambda_min=min(1.0, *long.lambdas),
        lambda_max=lambda_max,
        n_hat_choices=chosen.n_hat_choices,
        attention_factor=attention_factor,
        attention_span=ATTENTION_SPAN if searched else 1.0,
    )
    seeds = tuple(method.with_attention_factor(attention_factor).at(window) for method in methods)
    return Problem(
        rope=rope,
        length=window,
        space=space,
        seeds=seeds,
        methods=both_attention_factors(methods, attention_factor),
        lengths=(window,),
        **fields,
    )


def _readjust_window(
    model: LoadedModel,
    long: Window,
    problem: Problem,
    settings: ReadjustSettings,
    folder: Path,
    progress: Progress,
) -> WindowReport:
    sizes = settings.algorithm.sizes(problem.length)
    decisive = {
        "model": model.fingerprint,
        "window": problem.length,
        "long": Candidate.from_factors(long.factors).to_dict() | {"window": long.max_length},
        "seed": settings.seed,
        **algorithm_settings(settings.algorithm, sizes, problem.ramp),
        **space_settings(problem.space),
        "samples": sample_digests(problem.samples),
        **numeric_settings(model, settings.execution),
    }
    execution, together = settings.execution, sizes.round_size
    with open_scorer(
        folder, decisive, model, problem.samples, problem.lengths, execution, together, settings.resume, progress
    ) as scorer:
        progress.note(
            f"window {format_length(problem.length)}: lambda up to {problem.space.lambda_max:g} "
            f"(the long factors reach {max(long.factors.lambdas):g})"
        )
        announce(model, settings.data, problem.samples, problem.length, progress)
        algorithm = make_algorithm(
            settings.algorithm.algorithm, problem.space, problem.seeds, problem.ramp, sizes, settings.seed
        )
        plan = plan_of(settings.algorithm, sizes, model, settings.execution)
        solution = solve(problem, algorithm, scorer, plan, progress)
    provenance = {
        "method": f"longrope readjust, algorithm {settings.algorithm.algorithm}",
        "seed": settings.seed,
        "model": model.describe(),
        "data": {**asdict(settings.data), "drawn": describe_samples(problem.samples)},
        "settings": {
            **{name: value for name, value in decisive.items() if name not in ("model", "samples", "seed")},
            "batch": scorer.batch,
        },
        "results": results_record(solution, problem),
        "versions": versions(),
    }
    factors = solution.best.to_factors(problem.rope.policy.reference, problem.length).replace(provenance=provenance)
    factors.save(folder / FACTORS_FILE)
    frame = table(solution.results, problem.lengths)
    frame.to_csv(folder / TABLE_FILE, index=False)
    difference = paired_difference(solution.result(), solution.result("long"), problem.length)
    return WindowReport(factors, frame, solution, difference)


def _present_schedule(rope: ModelRope, path: str | None) -> FactorSchedule:
    """The extended model's windows: from a factors file, or from the model itself."""
    if path is None:
        schedule = rope.schedule()
    else:
        loaded = load_factors(path)
        reference = loaded if isinstance(loaded, RopeFactors) else loaded.reference
        reference.check_fits(rope.rope_theta, rope.rotary_dim)
        if reference.original_length != rope.original_length:
            raise FactorsError(
                f"{path}: the factors are for a model pretrained on {format_length(reference.original_length)} tokens, "
                f"this one was on {format_length(rope.original_length)}; use factors searched on this model"
            )
        schedule = loaded if isinstance(loaded, FactorSchedule) else rope.extended_by(loaded)
    return schedule
