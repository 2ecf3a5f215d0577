"""Figures of a perplexity evaluation: by length, per token and per byte, and documents compared with themselves."""

from __future__ import annotations

import math

import numpy as np

from longrope.evaluation.bootstrap import Interval, bootstrap_ratio
from longrope.lengths import format_length
from longrope.report.chart import (
    Series,
    best_at_each,
    draw_lines,
    in_words,
    legend,
    length_axis,
    new_chart,
    note_above,
    positive_axis,
)
from longrope.report.content import Plot, Table, shown
from longrope.report.evaluation_run import EvaluationRun
from longrope.report.palette import LIGHT


def perplexity_plot(run: EvaluationRun) -> Plot:
    """Perplexity by length, with the intervals of the table."""
    series = [
        Series(method, *(tuple(map(float, rows[name])) for name in ("length", "perplexity", "low", "high")))
        for method in run.methods
        for rows in [run.table[run.table["method"] == method]]
    ]
    return _by_length("perplexity", "Perplexity by length", "perplexity per token", _protocol(run), series)


def per_byte_plot(run: EvaluationRun) -> Plot | None:
    """Perplexity per byte by length, with intervals by the same bootstrap over documents."""
    if not {"nll", "bytes", "method", "length"} <= set(run.records):
        return None
    series = []
    for method in run.methods:
        own = run.records[run.records["method"] == method]
        columns: list[tuple[float, float, float, float]] = []
        for length, group in own.groupby("length", sort=True):
            nll, octets = (group[name].to_numpy(dtype=np.float64) for name in ("nll", "bytes"))
            spread = bootstrap_ratio(nll, octets, np.exp)
            columns.append((float(length), float(np.exp(nll.sum() / octets.sum())), spread.low, spread.high))
        if columns:
            series.append(Series(method, *(tuple(column) for column in zip(*columns, strict=True))))
    if not series:
        return None
    caption = "exp(total loss / bytes of text), which tokenizers do not change, so that models can be compared."
    return _by_length("per-byte", "Perplexity per byte by length", "perplexity per byte", caption, series)


def difference_plot(run: EvaluationRun) -> Plot | None:
    """The loss of every method minus that of the best one at the longest length, on the same documents."""
    found = paired(run)
    if not found:
        return None
    reference, differences = found
    methods = [method for method in run.methods if method != reference and (method, max(run.lengths)) in differences]
    series = []
    for method in methods:
        own = [
            (float(length), *differences[method, length]) for length in run.lengths if (method, length) in differences
        ]
        x, mean, spreads = zip(*own, strict=True)
        series.append(Series(method, x, mean, tuple(s.low for s in spreads), tuple(s.high for s in spreads)))
    values = [value for each in series for value in each.y]
    figure, axes = new_chart(f"nats per token worse than {reference}")
    axes.axhline(0, color=LIGHT["longrope"] if reference == "longrope" else LIGHT["axis"], linewidth=2)
    draw_lines(axes, series)
    length_axis(axes, run.lengths)
    # Room for the near ones; those that are far off need no exact place.
    ends = sorted(abs(each.y[-1]) for each in series)
    top = min(max(values), max(4 * ends[0], 0.3))
    low = min(0.0, *values)
    axes.set_ylim(low - 0.08 * (top - low), top + 0.08 * (top - low))
    legend(figure, axes)
    rows = [
        (method, format_length(length), differences[method, length][0], spread.low, spread.high)
        for method in methods
        for length in run.lengths
        if (method, length) in differences
        for spread in [differences[method, length][1]]
    ]
    return Plot(
        "difference",
        f"Against {reference}, document by document",
        f"Loss minus that of {reference}, the best at the longest length, on the same documents; above 0 is worse. How "
        "hard a document is cancels out, so these 95% bands tell methods apart better than those of the perplexity do."
        + note_above(series, top),
        in_words(series),
        figure,
        Table(("method", "length", "nats per token", "low", "high"), tuple(rows), "95% intervals over documents"),
    )


def paired(run: EvaluationRun) -> tuple[str, dict[tuple[str, int], tuple[float, Interval]]] | None:
    """The best method at the longest length, and how much worse others are in nats per token, by method and length.

    None without two methods that were measured on two documents that both have.
    """
    if len(run.methods) < 2 or not {"nll", "tokens", "item", "method", "length"} <= set(run.records):
        return None
    longest = run.table[run.table["length"] == max(run.lengths)].dropna(subset=["perplexity"])
    if longest.empty:
        return None
    reference = str(longest.loc[longest["perplexity"].idxmin(), "method"])
    base = run.records[run.records["method"] == reference].set_index("item")
    found = {}
    for method in run.methods:
        if method == reference:
            continue
        own = run.records[run.records["method"] == method].set_index("item")
        both = own.assign(reference=base["nll"]).dropna(subset=["reference"])
        for length, group in both.groupby("length", sort=True):
            difference = (group["nll"] - group["reference"]).to_numpy(dtype=np.float64)
            tokens = group["tokens"].to_numpy(dtype=np.float64)
            if len(group) >= 2:
                spread = bootstrap_ratio(difference, tokens)
                found[method, int(length)] = (float(difference.sum() / tokens.sum()), spread)
    return (reference, found) if any(length == max(run.lengths) for _, length in found) else None


def _by_length(name: str, title: str, label: str, caption: str, series: list[Series]) -> Plot:
    figure, axes = new_chart(label)
    draw_lines(axes, series)
    top = positive_axis(axes, [value for each in series for value in each.y], best_at_each(series))
    length_axis(axes, [int(x) for each in series for x in each.x])
    legend(figure, axes)
    return Plot(
        name,
        title,
        f"{caption} Bands are 95% intervals over documents.{note_above(series, top)}",
        in_words(series),
        figure,
        interval_table(series, label),
    )


def interval_table(series: list[Series], label: str) -> Table:
    """A row a series, a column an x, each with its interval."""
    lengths = sorted({x for each in series for x in each.x})
    rows = []
    for each in series:
        cells: dict[float, str] = {}
        for index, x in enumerate(each.x):
            cells[x] = shown(each.y[index])
            if each.low and math.isfinite(each.low[index]):
                cells[x] += f" ({shown(each.low[index])} to {shown(each.high[index])})"
        rows.append((each.name, *(cells.get(length) for length in lengths)))
    return Table(("method", *(format_length(int(length)) for length in lengths)), tuple(rows), f"{label}, 95% interval")


def _protocol(run: EvaluationRun) -> str:
    record = run.record
    if record.get("protocol") == "full":
        return f"Each length is the context of the same last {record.get('last')} tokens of each document."
    if record.get("protocol") == "sliding":
        return f"Documents are read in windows of the length that move by {record.get('stride')} tokens."
    return "Lower is better."
