"""Figures of any other suite: a line by length, or bars by method, for every number in its table that is a measure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from longrope.lengths import format_length
from longrope.report.chart import Series, draw_lines, legend, length_axis, new_chart, text
from longrope.report.content import Plot, Table, shown
from longrope.report.evaluation_run import EvaluationRun
from longrope.report.palette import LIGHT, looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = {"length": "length", "position": "position of the document with the answer", "documents": "documents"}
"""Columns that a measure is drawn against; ``documents`` only where a position among them is given."""
_DESCRIBING = {
    "low", "high", "error", "stderr", "trials", "tokens", "bytes", "items", "questions", "samples", "failed", "count",
    "seconds", "truncated",
}  # fmt: skip
"""Columns that say something of a measure or of what was measured, and are none themselves."""
_SUFFIXES = ("_low", "_high", "_error", "_stderr")


def metric_plots(run: EvaluationRun) -> list[Plot]:
    """A figure for each measure of the table, and for each of its groups, such as tasks, where it has some."""
    table = run.table
    across = _across(table)
    metrics = [name for name in table.columns if _is_metric(table, name)]
    groups = [name for name in table.columns if name not in ("method", across) and _is_group(table, name)]
    plots = []
    for key, rows in table.groupby(groups, sort=False, dropna=False) if groups else [((), table)]:
        named = ", ".join(_named(name, value) for name, value in zip(groups, key, strict=True))
        for metric in metrics:
            measured = rows[rows[metric].notna()]
            if not measured.empty and not measured.duplicated(["method", *([across] if across else [])]).any():
                plots.append(_plot(measured, metric, named, across))
    return plots


def _plot(rows: pd.DataFrame, metric: str, group: str, across: str) -> Plot:
    ends, kind = _interval(rows, metric)
    rows = rows.assign(_low=ends[0], _high=ends[1]) if ends else rows
    series = []
    for method in dict.fromkeys(map(str, rows["method"])):
        own = rows[rows["method"] == method]
        own = own.sort_values(across) if across else own
        x = tuple(map(float, own[across])) if across else (0.0,)
        low, high = (tuple(map(float, own[name])) for name in ("_low", "_high")) if ends else ((), ())
        series.append(Series(method, x, tuple(map(float, own[metric])), low, high))
    called = group if metric == "value" and group else metric
    title = f"{metric}, {group}" if group and called == metric else called
    caption = f"{title}."
    caption += f" Thin lines are {kind}." if kind else ""
    places = sorted({x for each in series for x in each.x})
    if len(places) > 1:
        figure, axes = new_chart(called)
        along = across == "length"
        span = places[-1] - places[0]
        draw_lines(axes, series, bands=False, apart=0.035 * along, step=0.012 * span * (not along))
        every = [value for each in series for value in (*each.y, *each.low, *each.high) if math.isfinite(value)]
        if min(every) >= 0 and max(every) <= 1:
            axes.set_ylim(-0.04, 1.04)
        if along:
            length_axis(axes, [int(x) for x in places])
        else:
            axes.set_xticks(places, [f"{x:g}" for x in places])
            axes.set_xlabel(_ACROSS[across])
        legend(figure, axes)
        said = "; ".join(f"{each.name}: " + ", ".join(map(shown, each.y)) for each in series)
    else:
        figure = _bars(series, called)
        caption += f" At {across} {_place(across, places[0])}." if across else ""
        said = "; ".join(f"{each.name}: {shown(each.y[0])}" for each in series)
    cells = [
        (each.name, *([_place(across, x)] if across else []), y, *((each.low[i], each.high[i]) if each.low else ()))
        for each in series
        for i, (x, y) in enumerate(zip(each.x, each.y, strict=True))
    ]
    columns = ("method", *([across] if across else []), called, *(("low", "high") if ends else ()))
    return Plot(_file_name(f"{metric}-{group}"), title, caption, said, figure, Table(columns, tuple(cells)))


def _across(table: pd.DataFrame) -> str:
    """The column whose values lie along the x axis: what varies, of those that can; "" where there is none."""
    there = [name for name in _ACROSS if name in table and (name != "documents" or "position" in table)]
    return next((name for name in there if table[name].nunique() > 1), there[0] if there else "")


def _named(column: str, value: object) -> str:
    if isinstance(value, float):
        value = f"{value:g}"
    return str(value) if column in ("task", "metric") else f"{column} {value}"


def _place(across: str, x: float) -> str:
    return format_length(int(x)) if across == "length" else f"{x:g}"


def _file_name(text: str) -> str:
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in text).split())


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


def _interval(rows: pd.DataFrame, metric: str) -> tuple[tuple[pd.Series, pd.Series] | None, str]:
    """The ends of the interval of a metric, by its own columns or those that follow it, and what they are."""
    after = list(rows.columns)[list(rows.columns).index(metric) + 1 :]
    following = after[: next((i for i, name in enumerate(after) if _is_metric(rows, name)), len(after))]
    own = [name for name in rows.columns if name.startswith(f"{metric}_")]
    for prefix, there in ((f"{metric}_", own), ("", following)):
        if {f"{prefix}low", f"{prefix}high"} <= set(there):
            return (rows[f"{prefix}low"], rows[f"{prefix}high"]), "95% intervals"
        for error in (f"{prefix}error", f"{prefix}stderr"):
            if error in there and rows[error].notna().any():
                ends = rows[metric] - 2 * rows[error], rows[metric] + 2 * rows[error]
                return ends, "two standard errors to each side"
    return None, ""


def _is_metric(table: pd.DataFrame, name: str) -> bool:
    own = name not in _DESCRIBING and name not in _ACROSS and not name.endswith(_SUFFIXES)
    return own and bool(pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name]))


def _is_group(table: pd.DataFrame, name: str) -> bool:
    """Text, or a number that rows of one method are told apart by."""
    if name in _ACROSS:
        return name != "documents" or "position" in table
    return not bool(pd.api.types.is_numeric_dtype(table[name]))  # of which truths are some
