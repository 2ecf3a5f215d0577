"""What the commands print and draw when they are done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from longrope.lengths import format_length
from longrope.sizes import format_size

if TYPE_CHECKING:
    import pandas as pd

    from longrope.evaluation.run import EvaluationReport
    from longrope.finetune.run import FinetuneReport
    from longrope.pipeline.run import ExtendReport
    from longrope.pipeline.score_text import Scored
    from longrope.pipeline.state import RunState
    from longrope.rope.factors import RopeFactors
    from longrope.search.comparison import PairedDifference
    from longrope.search.readjust import ReadjustReport
    from longrope.search.search import SearchReport

WIDTH_WHEN_PIPED = 120


def console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=WIDTH_WHEN_PIPED)


def print_table(frame: pd.DataFrame, title: str, emphasised: str = "longrope") -> None:
    """A table of methods, the searched factors in bold."""
    drawn = Table(title=title, title_justify="left")
    for name in frame.columns:
        drawn.add_column(str(name), justify="left" if any(isinstance(value, str) for value in frame[name]) else "right")
    for row in frame.itertuples(index=False):
        style = "bold" if any(str(value).startswith(emphasised) for value in row[:3]) else None
        drawn.add_row(*(_cell(value) for value in row), style=style)
    console().print(drawn)


def print_search(report: SearchReport, plots: list[Path]) -> None:
    """The table, the comparison with YaRN, and where the files are."""
    factors, solution, out = report.factors, report.solution, console()
    target = format_length(factors.target_length)
    print_table(report.table, f"Perplexity{_counted(factors)}, {format_length(factors.original_length)} -> {target}")
    out.print(
        f"best of {solution.evaluations} candidates: n_hat {factors.n_hat}, attention factor "
        f"{factors.attention_factor:.4f}, lambda {factors.lambdas[0]:g} to {factors.lambdas[-1]:g}"
    )
    if report.yarn is not None:
        yarn, difference = report.yarn
        out.print(
            f"against the better YaRN (attention factor {yarn.attention_factor:.4f}) at {target}, held out: "
            + _describe(difference)
        )
    names = ["factors.json", "results.csv", "evaluations.jsonl", "run.json", *(path.name for path in plots)]
    out.print(f"files in {report.folder}: {', '.join(names)}", soft_wrap=True)


def _counted(factors: RopeFactors) -> str:
    from longrope.search.settings import scored_part

    data = factors.provenance["data"]
    return scored_part(data["objective"], data["last"])


def print_readjust(report: ReadjustReport) -> None:
    """A table for each window and where the schedule is."""
    out = console()
    for window in report.windows:
        length = format_length(window.factors.target_length)
        print_table(window.table, f"Perplexity{_counted(window.factors)} at window {length}")
        if window.against_long is not None:
            out.print(f"against the long factors at {length}, held out: {_describe(window.against_long)}")
    out.print(f"schedule with windows {report.schedule.describe()}: {report.folder / 'factors.json'}", soft_wrap=True)


def print_finetune(report: FinetuneReport) -> None:
    """Perplexity on held-out text before and after, and where the result is."""
    import pandas as pd

    out = console()
    if report.held_out:
        frame = pd.DataFrame(report.held_out).T.rename(columns=lambda length: format_length(int(length)))
        frame.insert(0, "model", frame.index)
        print_table(frame, "Perplexity on held-out text", emphasised="after")
    out.print(f"{report.result.name} in {report.result}", soft_wrap=True)
    if report.result.name == "adapter":
        out.print(f"longrope merge {report.result} --output DIR makes a plain model of it", soft_wrap=True)


def print_evaluation(report: EvaluationReport) -> None:
    """The table, what failed, and where the files are."""
    out = console()
    frame = report.table
    if "length" in frame:
        frame = frame.assign(length=[format_length(length) for length in frame["length"]])
    spread = "95% interval" if "low" in frame else "standard errors"
    print_table(frame, f"{report.suite}, {spread}" + (" over documents" if "documents" in frame else ""))
    for label, reason in report.failures.items():
        out.print(f"failed: {label}: {reason}", soft_wrap=True)
    out.print(f"table, records and settings in {report.folder}", soft_wrap=True)


def print_status(state: RunState) -> None:
    """The stages of a run, with their state, time and results."""
    from longrope.pipeline.summary import result_of
    from longrope.search.solve import describe_duration

    drawn = Table("stage", "what", "state", "time", "result", title=f"Run of {state.recipe}", title_justify="left")
    for name, stage in state.stages.items():
        time = describe_duration(stage.seconds) if stage.seconds else ""
        drawn.add_row(name, stage.told, stage.state, time, result_of(stage))
    console().print(drawn, markup=False)
    total = describe_duration(sum(stage.seconds for stage in state.stages.values()))
    console().print(f"together {total}" + (f", finished {state.finished}" if state.finished else ""))


def print_extend(report: ExtendReport) -> None:
    """The stages, perplexity by method and length, and where the result is."""
    from longrope.pipeline.summary import perplexity_table

    print_status(report.state)
    frame = perplexity_table(report.state)
    if len(frame):
        print_table(frame, "Perplexity", emphasised="extended")
    out = console()
    if report.exported is not None:
        out.print(f"model: {report.exported}", soft_wrap=True, markup=False)
    if report.page is not None:
        out.print(f"report: {report.page}", soft_wrap=True, markup=False)


def print_factors(factors: RopeFactors, max_length: int) -> None:
    """Factors in full, with where they come from."""
    out = console()
    out.print(
        f"window {format_length(max_length)}: {format_length(factors.original_length)} -> "
        f"{format_length(factors.target_length)} (s = {factors.ratio:g}), rope_theta {factors.rope_theta:g}, "
        f"rotary_dim {factors.rotary_dim}, n_hat {factors.n_hat}, attention factor {factors.attention_factor:.6g}"
    )
    drawn = Table("pair", "lambda", "period", "rescaled", title="lambda", title_justify="left")
    for index, (value, frequency) in enumerate(zip(factors.lambdas, factors.inv_freq(), strict=True)):
        rescaled = 2 * math.pi / float(frequency)
        drawn.add_row(str(index), f"{value:g}", f"{rescaled / value:.1f}", f"{rescaled:.1f}")
    out.print(drawn)
    for name in ("method", "seed", "model"):
        if name in factors.provenance:
            out.print(f"{name}: {factors.provenance[name]}", markup=False)
    methods: list[dict[str, Any]] = factors.provenance.get("results", {}).get("methods", [])
    if methods:
        import pandas as pd

        rows = [
            {
                "method": row["method"],
                "attention factor": row["attention_factor"],
                f"search {format_length(factors.target_length)}": row["search_perplexity"],
                **{
                    f"held-out {format_length(int(length))}": value
                    for length, value in row["held_out_perplexity"].items()
                },
            }
            for row in methods
        ]
        print_table(pd.DataFrame(rows), "Perplexity")


def write_search_plots(report: SearchReport) -> list[Path]:
    """Convergence and factor plots in the run's folder; none where matplotlib is not installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        console().print("no plots: matplotlib is not installed (pip install longrope[report])", markup=False)
        return []
    from longrope.report.plots import plot_convergence

    baselines = {
        f"{result.name} ({result.attention_factor:.3f})": result.search
        for result in report.solution.results
        if not result.name.startswith("longrope")
    }
    convergence, curve = report.folder / "convergence.png", report.folder / "factors.png"
    plot_convergence(report.solution.scores, report.solution.convergence, baselines, convergence)
    write_factor_plot(report.factors, curve)
    return [convergence, curve]


def write_factor_plot(factors: RopeFactors, path: Path) -> None:
    """Lambda against dimension, beside PI, NTK and YaRN for the same ratio."""
    from longrope.report.plots import plot_factors
    from longrope.rope.critical_dimension import critical_pair
    from longrope.rope.factors import RopeFactors
    from longrope.rope.methods import linear, ntk, yarn

    identity = RopeFactors.identity(factors.rope_theta, factors.rotary_dim, factors.original_length)
    target = max(factors.target_length, factors.original_length)
    curves = {
        "longrope": factors,
        "PI": linear(identity, target),
        "NTK": ntk(identity, target),
        "YaRN": yarn(identity, target),
    }
    critical = critical_pair(factors.rope_theta, factors.rotary_dim, factors.original_length)
    plot_factors(curves, path, critical)


def _describe(difference: PairedDifference) -> str:
    better = "better" if difference.mean < 0 else "worse"
    return (
        f"{abs(difference.mean):.4f} nats per token {better} (paired standard error "
        f"{difference.standard_error:.4f}, {difference.documents} documents, "
        f"{abs(difference.standard_errors):.1f} standard errors)"
    )


def _cell(value: object) -> str:
    if value is None:  # JSON's nan
        return "-"
    if isinstance(value, float):
        return "-" if math.isnan(value) else ("failed" if math.isinf(value) else f"{value:.4f}")
    return str(value)


def print_scored(found: Sequence[Scored]) -> None:
    """A row a length: perplexity, time, speed and memory."""
    drawn = Table()
    for name in ("tokens", "perplexity", "seconds", "tokens/s", "TFLOP/s", "memory above the model"):
        drawn.add_column(name, justify="right")
    for each in found:
        drawn.add_row(
            format_length(each.length),
            f"{each.perplexity:.4f}",
            f"{each.seconds:.2f}",
            f"{each.length / each.seconds:,.0f}",
            f"{each.flops / each.seconds / 1e12:.3g}",
            "unknown" if each.memory is None else format_size(each.memory, measured=True),
        )
    console().print(drawn)
