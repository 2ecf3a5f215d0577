"""Figures of any other suite: a line by length, or bars by method, for every number in its table that is a measure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from longrope.lengths import format_length
from longrope.report.chart import Series, draw_lines, in_words, legend, length_axis, new_chart, text
from longrope.report.content import Plot, Table, shown
from longrope.report.evaluation_run import EvaluationRun
from longrope.report.palette import LIGHT, looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COUNTS = {
    "length", "low", "high", "error", "stderr", "trials", "documents", "tokens", "bytes", "items", "questions",
    "samples", "samples_scored", "count", "position", "seconds", "shots", "seed", "truncated", "prompts",
}  # fmt: skip
"""Columns that describe a measure or what was measured, and are none themselves."""
_SUFFIXES = ("_low", "_high", "_error", "_stderr")


def metric_plots(run: EvaluationRun) -> list[Plot]:
    """A figure for each measure of the table, and for each of its groups, such as tasks, where it has some."""
    table = run.table
    metrics = [name for name in table.columns if _is_metric(table, name)]
    groups = [name for name in table.columns if name not in ("method", "length") and _is_group(table, name)]
    plots = []
    parts = table.groupby(groups, sort=False, dropna=False) if groups else [((), table)]
    for key, rows in parts:
        named = ", ".join(str(each) for each in (key if isinstance(key, tuple) else (key,)))
        plots += [_plot(rows, metric, named, run.suite) for metric in metrics if rows[metric].notna().any()]
    return [plot for plot in plots if plot is not None]


def _plot(rows: pd.DataFrame, metric: str, group: str, suite: str) -> Plot | None:
    if rows.duplicated(["method", "length"]).any():
        return None  # there is more to these rows than is known here; the table shows them
    methods = list(dict.fromkeys(map(str, rows["method"])))
    ends = _interval(rows, metric)
    series = []
    for method in methods:
        own = rows[rows["method"] == method].sort_values("length")
        low, high = (tuple(map(float, own[name])) for name in ends) if ends else ((), ())
        series.append(Series(method, tuple(map(float, own["length"])), tuple(map(float, own[metric])), low, high))
    lengths = sorted({int(length) for length in rows["length"]})
    title = f"{metric}, {group}" if group else metric
    caption = f"{suite}: {metric}" + (f" of {group}." if group else ".") + (" 95% intervals." if ends else "")
    if len(lengths) > 1:
        figure, axes = new_chart(metric)
        draw_lines(axes, series, bands=False, apart=0.03)
        length_axis(axes, lengths)
        legend(figure, axes)
    else:
        figure = _bars(series, metric)
        caption += f" At {format_length(lengths[0])} tokens."
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{metric}-{group}" if letter.isascii())
    cells = [
        (each.name, format_length(int(x)), y, *((each.low[i], each.high[i]) if each.low else ()))
        for each in series
        for i, (x, y) in enumerate(zip(each.x, each.y, strict=True))
    ]
    columns = ("method", "length", metric, *(("low", "high") if ends else ()))
    return Plot(name.strip("-"), title, caption, in_words(series), figure, Table(columns, tuple(cells)))


def _bars(series: list[Series], metric: str) -> Figure:
    figure, axes = new_chart(height=1.1 + 0.36 * len(series))
    axes.grid(visible=False)
    look = looks([each.name for each in series])
    largest = max((abs(each.y[0]) for each in series if math.isfinite(each.y[0])), default=1.0) or 1.0
    for place, each in enumerate(series):
        value = each.y[0]
        if not math.isfinite(value):
            text(axes, 0, place, " n/a", va="center")
            continue
        axes.barh([place], [value], color=look[each.name].colour, alpha=0.75, height=0.62)
        end = value
        if each.low and math.isfinite(each.low[0]):
            axes.hlines([place], each.low[0], each.high[0], color=LIGHT["ink"], linewidth=1.4)
            end = max(value, each.high[0])
        text(axes, end + 0.015 * largest, place, f" {shown(float(f'{value:.3g}'))}", va="center")
    axes.set_yticks(range(len(series)), [each.name for each in series])
    axes.set_ylim(len(series) - 0.4, -0.6)
    axes.set_xlim(min(0.0, *(each.y[0] for each in series if math.isfinite(each.y[0])), 0.0), largest * 1.25)
    axes.set_xlabel(metric)
    return figure


def _interval(rows: pd.DataFrame, metric: str) -> tuple[str, str] | None:
    """The columns that hold the ends of the interval of a metric: its own, or those that follow it."""
    if {f"{metric}_low", f"{metric}_high"} <= set(rows.columns):
        return f"{metric}_low", f"{metric}_high"
    after = list(rows.columns)[list(rows.columns).index(metric) + 1 :]
    before_next = []
    for name in after:
        if _is_metric(rows, name):
            break
        before_next.append(name)
    return ("low", "high") if {"low", "high"} <= set(before_next) else None


def _is_metric(table: pd.DataFrame, name: str) -> bool:
    own = name not in _COUNTS and not name.endswith(_SUFFIXES)
    return own and pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name])


def _is_group(table: pd.DataFrame, name: str) -> bool:
    """Text, or a position: what rows of one method and length differ in."""
    return not pd.api.types.is_numeric_dtype(table[name]) or name == "position"
