"""Figures of passkeys and needles: how many were found, by length, and where they were hidden."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from longrope.evaluation.retrieval import wilson
from longrope.lengths import format_length
from longrope.report.chart import Series, draw_lines, in_words, legend, length_axis, new_chart, text
from longrope.report.content import Plot, Table
from longrope.report.evaluation_run import EvaluationRun
from longrope.report.palette import LIGHT
from longrope.report.perplexity_figures import interval_table

DEPTHS = 10
"""Equal parts of a text that depths are sorted into."""
_NUMBERED_COLUMNS = 8
_MOST_ROWS, _LABELLED_ROWS = 21, 12


def is_retrieval(run: EvaluationRun) -> bool:
    """Whether the items are things hidden at a depth and found or not."""
    return {"method", "length", "depth", "correct"} <= set(run.records)


def accuracy_plot(run: EvaluationRun) -> Plot:
    """Share of right answers by length and method, with Wilson's intervals."""
    series = []
    for method in run.methods:
        own = run.records[run.records["method"] == method]
        columns = []
        for length, group in own.groupby("length", sort=True):
            right, trials = int(group["correct"].sum()), len(group)
            low, high = wilson(right, trials)
            columns.append((float(length), 100 * right / trials, 100 * low, 100 * high))
        if columns:
            series.append(Series(method, *(tuple(column) for column in zip(*columns, strict=True))))
    figure, axes = new_chart("% of answers right")
    draw_lines(axes, series, bands=False, apart=0.035)
    axes.set_ylim(-4, 104)
    length_axis(axes, [int(x) for each in series for x in each.x])
    legend(figure, axes)
    counts = sorted({len(group) for _, group in run.records.groupby(["method", "length"])})
    return Plot(
        "accuracy",
        "Right answers by length",
        f"{' or '.join(map(str, counts))} texts for each method and length; bars are 95% intervals (Wilson). Methods "
        "are moved a little apart sideways.",
        in_words(series),
        figure,
        interval_table(series, "% of answers right"),
    )


def heatmaps(run: EvaluationRun) -> list[Plot]:
    """Length against depth, a figure for each method."""
    return [_heatmap(run, method) for method in run.methods if (run.records["method"] == method).any()]


def _heatmap(run: EvaluationRun, method: str) -> Plot:
    from matplotlib.patches import Rectangle

    own = run.records[run.records["method"] == method]
    lengths = sorted({int(length) for length in run.records["length"]})
    labels, places = _rows(run, own["depth"].to_numpy(dtype=np.float64))
    figure, axes = new_chart("depth in the text, %", height=3.4)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    for row in range(len(labels)):
        for column, length in enumerate(lengths):
            here = own["correct"].to_numpy()[(places == row) & (own["length"].to_numpy() == length)]
            if len(here):
                cells[row, column] = int(here.sum()), len(here)
    numbered = len(lengths) <= _NUMBERED_COLUMNS
    for (row, column), (right, trials) in cells.items():
        share = right / trials
        axes.add_patch(
            Rectangle((column + 0.02, row + 0.03), 0.96, 0.94, facecolor=LIGHT["heat"], alpha=share, linewidth=0)
        )
        axes.add_patch(
            Rectangle((column + 0.02, row + 0.03), 0.96, 0.94, fill=False, edgecolor=LIGHT["grid"], linewidth=0.8)
        )
        if numbered:
            text(axes, column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center")
    axes.set_xlim(0, len(lengths))
    axes.set_ylim(len(labels), 0)
    step = math.ceil(len(lengths) / _NUMBERED_COLUMNS)
    shown_lengths = list(range(len(lengths)))[::-1][::step][::-1]
    axes.set_xticks(
        [place + 0.5 for place in shown_lengths], [format_length(lengths[place]) for place in shown_lengths]
    )
    every = math.ceil(len(labels) / _LABELLED_ROWS)
    axes.set_yticks([row + 0.5 for row in range(0, len(labels), every)], labels[::every])
    axes.set_xlabel("length in tokens")
    rows = []
    for row, label in enumerate(labels):
        told = (cells.get((row, column)) for column in range(len(lengths)))
        rows.append((f"{label}%", *(None if cell is None else f"{cell[0]} of {cell[1]}" for cell in told)))
    total = int(own["correct"].sum())
    return Plot(
        f"depth-{_file_name(method)}",
        f"Where it was found: {method}",
        f"% of right answers by length and depth; {'numbers and ' if numbered else ''}fuller cells mean more. No cell: "
        "nothing was hidden there.",
        f"{method}: {total} of {len(own)} answers right. "
        + "; ".join(
            f"{format_length(length)}: {int(here['correct'].sum())} of {len(here)}"
            for length, here in own.groupby("length", sort=True)
        ),
        figure,
        Table(("depth", *map(format_length, lengths)), tuple(rows), f"{method}: right answers", emphasised="\0"),
    )


def _rows(run: EvaluationRun, depths: npt.NDArray[np.float64]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Labels of the rows in percent, and the row of each depth: the suite's depths, or equal parts for random ones."""
    chosen = run.record.get("depths")
    if isinstance(chosen, list) and len(chosen) <= _MOST_ROWS:
        steps = np.asarray(sorted(chosen), dtype=np.float64)
        return [f"{100 * depth:.3g}" for depth in steps], np.abs(depths[:, None] - steps).argmin(axis=1)
    places: npt.NDArray[np.int64] = np.clip((depths * DEPTHS).astype(np.int64), 0, DEPTHS - 1)
    return [f"{100 * row // DEPTHS} to {100 * (row + 1) // DEPTHS}" for row in range(DEPTHS)], places


def _file_name(method: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in method)
