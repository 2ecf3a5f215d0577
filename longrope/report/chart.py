"""Charts of a report: drawn at the size of a phone, so that a wide screen shows several beside each other.

Only matplotlib, loaded when a chart is made, and never its global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.report.content import shown
from longrope.report.palette import LIGHT, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.0, 3.2  # inches
TEXT, SMALL = 10.0, 9.5  # points
_LABELLED_LENGTHS = 7
_NAMED_ABOVE = 4
_REACH = 10.0
"""A logarithmic axis ends at so many times the worst of the best values; what is above is named in a note."""


@dataclass(frozen=True)
class Series:
    """A line: x and y, nan where there is nothing, and the ends of an interval where they are known."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def new_chart(label: str = "", height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty chart whose y axis is labelled at its top, where a phone has room.

    Raises:
        SettingsError: without matplotlib.
    """
    try:
        import matplotlib  # noqa: F401  (also where only a part of it can be imported)
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingsError(
            "a report needs matplotlib, which is not installed; run `pip install longrope[report]`"
        ) from None
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=LIGHT["paper"])
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(LIGHT["axis"])
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, color=LIGHT["axis"], labelcolor=LIGHT["ink"])
    axes.xaxis.label.set(fontsize=TEXT, color=LIGHT["ink"])
    if label:
        axes.set_title(label, loc="left", fontsize=TEXT, color=LIGHT["muted"])
    return figure, axes


def draw_lines(
    axes: Axes, series: Sequence[Series], *, bands: bool = True, apart: float = 0.0, step: float = 0.0
) -> None:
    """Draw every series in the look of its method.

    Args:
        bands: intervals as bands; as bars otherwise.
        apart: share by which neighbouring series are moved from each other on a logarithmic x axis, where they would
            hide each other.
        step: the same in units of a linear x axis.
    """
    look = looks([each.name for each in series])
    for index, each in enumerate(series):
        colour, line, marker, width = look[each.name]
        place = index - (len(series) - 1) / 2
        x = [value * (1 + apart) ** place + step * place for value in each.x]
        axes.plot(
            x, each.y, color=colour, linestyle=line, linewidth=width, marker=marker, markersize=5, label=each.name,
            zorder=3 + (colour == LIGHT["longrope"]),
        )  # fmt: skip
        if each.low and bands:
            axes.fill_between(x, each.low, each.high, color=colour, alpha=0.13, linewidth=0, zorder=2)
        elif each.low:
            axes.vlines(x, each.low, each.high, color=colour, linewidth=1.2, alpha=0.75, zorder=2)


def legend(figure: Figure, axes: Axes) -> None:
    """The legend below the chart, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max((len(label) for label in labels), default=0)
    columns = 3 if longest <= 11 else 2 if longest <= 22 else 1
    figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, fontsize=SMALL, frameon=False,
        labelcolor=LIGHT["ink"], handlelength=2.4, columnspacing=1.2, handletextpad=0.6, labelspacing=0.3, borderpad=0,
    )  # fmt: skip


def length_axis(axes: Axes, lengths: Sequence[int], label: str = "length in tokens") -> None:
    """A logarithmic x axis with a tick at every length, or at as many as have room."""
    from matplotlib.ticker import FixedLocator, NullLocator

    lengths = sorted(set(lengths))
    step = math.ceil(len(lengths) / _LABELLED_LENGTHS)
    labelled = lengths[::-1][::step][::-1]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([format_length(length) for length in labelled])
    axes.set_xlim(min(lengths) / 1.2, max(lengths) * 1.2)
    axes.set_xlabel(label)


def positive_axis(axes: Axes, values: Sequence[float], best: Sequence[float]) -> float:
    """A y axis for values that are compared by their ratios; returns where it ends.

    Args:
        values: all that is drawn.
        best: the best value at every x; the axis has room for several times the largest of them.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.inf
    low, top = min(finite), min(max(finite), _REACH * max([value for value in best if math.isfinite(value)]))
    if top > 2.5 * low:
        plain_log(axes)
        axes.set_ylim(low / (top / low) ** 0.05, top * (top / low) ** 0.06)
    else:
        room = (top - low or abs(top) or 1.0) * 0.08
        axes.set_ylim(low - room, top + room)
    return float(axes.get_ylim()[1])


def plain_log(axes: Axes, base: int = 10) -> None:
    """A logarithmic y axis whose ticks are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log", base=base)
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if base == 10 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(base, subs=steps, numticks=10))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def best_at_each(series: Sequence[Series]) -> list[float]:
    """The smallest value at every x."""
    best: dict[float, float] = {}
    for each in series:
        for x, y in zip(each.x, each.y, strict=True):
            if math.isfinite(y):
                best[x] = min(y, best.get(x, math.inf))
    return list(best.values())


def in_words(series: Sequence[Series], x_name: str = "at") -> str:
    """The first and the last value of each series."""
    parts = []
    for each in series:
        points = [(x, y) for x, y in zip(each.x, each.y, strict=True) if math.isfinite(y)]
        if not points:
            parts.append(f"{each.name}: no value")
            continue
        ends = points[:1] if len(points) == 1 else [points[0], points[-1]]
        said = ", ".join(f"{shown(float(y))} {x_name} {_x(x)}" for x, y in ends)
        parts.append(f"{each.name}: {said}")
    return "; ".join(parts) + "."


def _x(value: float) -> str:
    return format_length(int(value)) if value == int(value) else shown(float(value))


def note_above(series: Sequence[Series], top: float) -> str:
    """Which values are above the end of the axis, or how many where they are many."""
    hidden = [
        f"{each.name} {shown(float(y))} at {_x(x)}"
        for each in series
        for x, y in zip(each.x, each.y, strict=True)
        if math.isfinite(y) and y > top
    ]
    if len(hidden) > _NAMED_ABOVE:
        return f" {len(hidden)} values are above the axis; the table has them."
    return f" Above the axis: {', '.join(hidden)}." if hidden else ""


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers, few enough for a phone."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if abs(value) < 1e6 else f"{value:.3g}"))


def text(axes: Axes, x: float, y: float, said: str, **how: Any) -> None:
    """Words inside of a chart."""
    axes.text(x, y, said, **{"fontsize": SMALL, "color": LIGHT["ink"], **how})
