"""An evaluation as a section of a report."""

from __future__ import annotations

from typing import Any

from longrope.lengths import format_length
from longrope.report.content import Plot, Section, Table, record_table, short_name, when
from longrope.report.evaluation_run import EvaluationRun
from longrope.report.perplexity_figures import difference_plot, paired, per_byte_plot, perplexity_plot
from longrope.report.reproduce import evaluation_command
from longrope.report.retrieval_figures import accuracy_plot, heatmaps, is_retrieval
from longrope.report.suite_figures import metric_plots
from longrope.search.solve import describe_duration

MOST_FIGURES = 12
"""Of a suite with many tasks; the table has all."""
_APART = ("model", "policies", "results", "failures", "machine", "versions", "command", "kind")


def evaluation_section(run: EvaluationRun) -> Section:
    """All that an evaluation has to show."""
    record = run.record
    failures = record.get("failures") or {}
    plots = _plots(run)
    command = evaluation_command(record.get("command"))
    model = dict(record.get("model") or {})
    return Section(
        kind="evaluation",
        title=f"{short_name(model.get('name'))}: {run.suite}",
        name=run.suite,
        source=str(run.folder),
        findings=_findings(run),
        facts=_facts(run),
        plots=tuple(plots[:MOST_FIGURES]),
        tables=(_table(run),),
        missing=_missing(run, len(plots)),
        failures={str(label): str(reason) for label, reason in failures.items()},
        records=(
            record_table("Model", model),
            record_table("Settings", {name: value for name, value in record.items() if name not in _APART}),
            record_table("Machine", record.get("machine")),
            record_table("Versions", record.get("versions")),
        ),
        command=command,
    )


def _missing(run: EvaluationRun, figures: int) -> tuple[str, ...]:
    found = []
    if not run.record.get("command"):
        found.append("The command line: n/a, this run was started from Python or by an earlier version.")
    if "truncated" in run.table and run.lengths and run.table["truncated"].any():
        lengths = sorted({int(length) for length in run.table[run.table["truncated"].astype(bool)]["length"]})
        named = ", ".join(map(format_length, lengths))
        found.append(f"Marked as truncated: not all of the text is seen at {named} tokens.")
    if figures > MOST_FIGURES:
        found.append(f"Figures of {MOST_FIGURES} of {figures} measures; the table has all.")
    return tuple(found)


def _plots(run: EvaluationRun) -> list[Plot]:
    if "perplexity" in run.table and run.lengths:
        plots = (perplexity_plot(run), per_byte_plot(run), difference_plot(run))
        return [plot for plot in plots if plot is not None]
    if is_retrieval(run) and run.lengths:
        return [accuracy_plot(run), *heatmaps(run)]
    return metric_plots(run)


def _table(run: EvaluationRun) -> Table:
    columns = tuple(map(str, run.table.columns))
    rows = []
    for row in run.table.itertuples(index=False):
        cells = []
        for name, value in zip(columns, row, strict=True):
            whole = isinstance(value, float) and value.is_integer() and name not in _measures(columns)
            cells.append(format_length(int(value)) if name == "length" else int(value) if whole else value)
        rows.append(tuple(cells))
    said = [("low", "low and high are the ends of 95% intervals"), ("error", "error is the standard error")]
    told = [words for name, words in said if any(column == name or column.endswith(f"_{name}") for column in columns)]
    return Table(columns, tuple(rows), "; ".join(told))


def _measures(columns: tuple[str, ...]) -> set[str]:
    """Columns that stay decimal though a value may be whole."""
    return {name for name in columns if name not in ("trials", "documents", "tokens", "items", "questions", "samples")}


def _findings(run: EvaluationRun) -> tuple[str, ...]:
    if "perplexity" in run.table and run.lengths:
        return _perplexity_findings(run)
    if "accuracy" in run.table and run.lengths:
        longest = run.table[run.table["length"] == run.table["length"].max()].dropna(subset=["accuracy"])
        said = []
        for row in longest.sort_values("accuracy", ascending=False, kind="stable").to_dict("records"):
            spread = f" ({row['low']:.0%} to {row['high']:.0%})" if {"low", "high"} <= row.keys() else ""
            said.append(f"{row['method']} {row['accuracy']:.0%}{spread}")
        length = format_length(int(run.table["length"].max()))
        return (f"Right at {length} tokens, with 95% intervals: {', '.join(said[:6])}.",) if said else ()
    return ()


def _perplexity_findings(run: EvaluationRun) -> tuple[str, ...]:
    length = int(run.table["length"].max())
    longest = run.table[run.table["length"] == length].dropna(subset=["perplexity"])
    if longest.empty:
        return ()
    ranked = longest.sort_values("perplexity", kind="stable").to_dict("records")
    best = ranked[0]
    spread = f" (95% interval {best['low']:.4g} to {best['high']:.4g})" if best.get("low") == best.get("low") else ""
    found = [
        f"Lowest at {format_length(length)} tokens: {best['method']}, perplexity {best['perplexity']:.4g}{spread}."
    ]
    compared = paired(run)
    if compared is not None and len(ranked) > 1 and (ranked[1]["method"], length) in compared[1]:
        second = ranked[1]["method"]
        mean, interval = compared[1][second, length]
        found.append(
            f"{second}, the next best, is {mean:.4f} nats per token worse on the same documents (95% interval "
            f"{interval.low:.4f} to {interval.high:.4f})."
        )
        if interval.low <= 0 <= interval.high:
            found.append("That interval holds 0: these documents do not tell the two apart.")
    return tuple(found)


def _facts(run: EvaluationRun) -> tuple[tuple[str, str], ...]:
    record = run.record
    facts: list[tuple[str, Any]] = [
        ("methods", ", ".join(run.methods)),
        ("lengths", ", ".join(map(format_length, run.lengths or record.get("lengths", ())))),
    ]
    for name in ("documents", "trials"):
        if name in run.table:
            counts = sorted({int(count) for count in run.table[name].dropna()})
            facts.append((name, ", ".join(map(str, counts)) if len(counts) < 5 else f"{counts[0]} to {counts[-1]}"))
    facts += [(name, record[name]) for name in ("seed", "dtype", "attention") if name in record]
    if "wall_seconds" in record:
        facts.append(("duration", describe_duration(record["wall_seconds"])))
    if "finished" in record:
        facts.append(("finished", when(record["finished"])))
    return tuple((name, str(value)) for name, value in facts)
