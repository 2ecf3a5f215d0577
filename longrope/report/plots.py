"""Plots of a search: how it converged, and the factors it found beside the published ones.

Only matplotlib, loaded when a figure is made, and never its global state: drawing is safe in a thread and in a
notebook.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.exceptions import SettingsError
from longrope.files import write_bytes_atomically
from longrope.lengths import format_length
from longrope.rope.critical_dimension import critical_pair
from longrope.rope.factors import RopeFactors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEARCHED = "longrope"
WIDTH = 7.0  # inches: readable on a phone held upright
DPI = 150

# The palette of Okabe and Ito, which the colour-blind can tell apart; a method has one colour in every plot.
EMPHASIS = "#D55E00"
COLOURS = {"none": "#555555", "pi": "#0072B2", "ntk": "#009E73", "dynamic-ntk": "#CC79A7", "yarn": "#E69F00"}
OTHER_COLOURS = ("#56B4E9", "#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
STYLES = {"none": ":", "pi": "--", "ntk": "-.", "dynamic-ntk": (0, (5, 1, 1, 1, 1, 1)), "yarn": (0, (6, 2))}
GREY = "#666666"


def plot_convergence(
    evaluations: Sequence[float], best: Sequence[tuple[int, float]], baselines: Mapping[str, float], path: str | Path
) -> None:
    """Write :func:`convergence_figure` to ``path``, a .png or .svg file.

    Raises:
        SettingsError: for another suffix, or without matplotlib.
    """
    save_figure(convergence_figure(evaluations, best, baselines), path)


def plot_factors(curves: Mapping[str, RopeFactors], path: str | Path, critical: int | None = None) -> None:
    """Write :func:`factors_figure` to ``path``, a .png or .svg file.

    Raises:
        SettingsError: for another suffix, without curves, or without matplotlib.
    """
    save_figure(factors_figure(curves, critical), path)


def convergence_figure(
    evaluations: Sequence[float], best: Sequence[tuple[int, float]], baselines: Mapping[str, float]
) -> Figure:
    """Every candidate's perplexity on the search samples, the best so far, and the baselines.

    The y axis ends a little above the best baselines. Candidates above it are triangles at its upper edge; baselines
    above it are named in a note, and so is the number of candidates that have no finite perplexity.

    Args:
        evaluations: perplexity of every candidate in the order evaluated; nan or infinite for one that failed.
        best: (candidates evaluated, best perplexity until then) after each round.
        baselines: perplexity by method on the same samples.
    """
    figure, axes = _new_figure()
    scored = [(index, value) for index, value in enumerate(evaluations, start=1) if math.isfinite(value)]
    finite_baselines = {name: value for name, value in baselines.items() if math.isfinite(value)}
    bottom, top = perplexity_range([value for _, value in [*scored, *best]], list(finite_baselines.values()))
    if top > 3 * bottom:
        _log_axis(axes, 10)
    axes.set_ylim(bottom, top)
    axes.set_xlim(0, max([len(evaluations), *(count for count, _ in best)], default=0) + 1)

    inside = [(index, value) for index, value in scored if value <= top]
    above = [index for index, value in scored if value > top]
    axes.plot(*_columns(inside), ".", color="#9A9A9A", markersize=4, label="candidates", zorder=2)
    edge = axes.get_xaxis_transform()  # y in axes units
    axes.plot(above, [0.985] * len(above), "^", color="#C0C0C0", markersize=3, transform=edge, label="above", zorder=2)
    labels: list[tuple[float, str, str, str]] = []
    for name, value in finite_baselines.items():
        if value <= top:
            colour = _colour(name, list(finite_baselines))
            axes.axhline(value, color=colour, linestyle=_style(name), linewidth=1.2, label=name, zorder=3)
            labels.append((value, f"{name} {_short(value)}", colour, "normal"))
    if best:
        steps = [*best, (max(len(evaluations), best[-1][0]), best[-1][1])]
        axes.plot(
            *_columns(steps), color=EMPHASIS, linewidth=2.2, drawstyle="steps-post", label="best so far", zorder=4
        )
        labels.append((best[-1][1], f"best {_short(best[-1][1])}", EMPHASIS, "bold"))
    _label_right(axes, labels)

    axes.set_xlabel("candidates evaluated")
    axes.set_ylabel("perplexity on the search samples")
    hidden = [f"{name} {_short(value)}" for name, value in finite_baselines.items() if value > top]
    notes = []
    if above:
        hidden.append(_count(len(above), "candidate") + " (triangles)")
    if hidden:
        notes.append(f"above the axis: {', '.join(hidden)}")
    failed = [name for name in baselines if name not in finite_baselines]
    if len(scored) < len(evaluations):
        failed.append(_count(len(evaluations) - len(scored), "candidate"))
    if failed:
        notes.append(f"failed: {', '.join(failed)}")
    _titles(figure, axes, "Search: perplexity of the candidates", "; ".join(notes))
    return figure


def factors_figure(curves: Mapping[str, RopeFactors], critical: int | None = None) -> Figure:
    """Lambda against the index of the rotated pair.

    Args:
        curves: factors by name; ``longrope``, or else the first, is emphasised and gives the title its lengths.
        critical: the critical pair to mark; the theoretical one of the emphasised factors when not given.

    Raises:
        SettingsError: without curves.
    """
    if not curves:
        raise SettingsError("there are no factors to plot; give at least one set")
    main = SEARCHED if SEARCHED in curves else next(iter(curves))
    factors = curves[main]
    figure, axes = _new_figure(height=5.0)
    from matplotlib.ticker import MaxNLocator

    every = [value for curve in curves.values() for value in curve.lambdas]
    low, high = min(*every, factors.ratio), max(*every, factors.ratio)
    if high >= 4 * low:
        _log_axis(axes, 2)
        axes.set_ylim(low / (high / low) ** 0.04, high * (high / low) ** 0.08)

    others = [name for name in curves if name != main]
    for name in [main, *others]:
        curve, emphasised = curves[name], name == main
        axes.plot(
            range(len(curve.lambdas)),
            curve.lambdas,
            color=EMPHASIS if emphasised else _colour(name, others),
            linestyle="-" if emphasised else _style(name),
            linewidth=2.6 if emphasised else 1.4,
            marker="o" if emphasised else "",
            markersize=4,
            label=_describe(name, curve),
            zorder=4 if emphasised else 3,
        )
    axes.axhline(factors.ratio, color="#D0D0D0", linewidth=4, label=f"s = {factors.ratio:g}", zorder=1)
    if critical is None:
        critical = critical_pair(factors.rope_theta, factors.rotary_dim, factors.original_length)
    if critical < len(factors.lambdas):  # otherwise every pair turned at least once in training
        axes.axvline(critical, color=GREY, linestyle=":", linewidth=1.4, label=f"critical pair {critical}", zorder=2)
    axes.set_xlim(-0.5, max(len(curve.lambdas) for curve in curves.values()) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("pair index (fast to slow)")
    axes.set_ylabel("lambda")
    # Below the axes, where it hides no curve.
    figure.legend(loc="outside lower left", ncols=2, fontsize=9, frameon=False, labelspacing=0.3)
    _titles(
        figure,
        axes,
        f"Rescale factors, {format_length(factors.original_length)} to {format_length(factors.target_length)} tokens",
        f"{factors.rotary_dim // 2} rotated pairs, rope_theta {factors.rope_theta:g}",
    )
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = DPI) -> None:
    """Write a figure whole or not at all, as .png or .svg by the suffix; equal figures give equal bytes.

    Raises:
        SettingsError: for another suffix.
    """
    import matplotlib

    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise SettingsError(f"plot {path} has no known suffix; use .png or .svg")
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "longrope"}):  # otherwise SVG ids are random
        figure.savefig(stream, format=kind, dpi=dpi, metadata=metadata)
    write_bytes_atomically(path, stream.getvalue())


def _new_figure(height: float = 4.5) -> tuple[Figure, Axes]:
    try:
        import matplotlib  # noqa: F401  (also where only a part of it can be imported)
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingsError(
            "plots need matplotlib, which is not installed; run `pip install longrope[report]`"
        ) from None
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10)
    axes.xaxis.label.set_fontsize(11)
    axes.yaxis.label.set_fontsize(11)
    return figure, axes


def perplexity_range(candidates: Sequence[float], baselines: Sequence[float]) -> tuple[float, float]:
    """The y range: from just below the best of all to just above the best few baselines.

    A baseline is among them while it is not much further (three times, in logarithms) above the best of all than the
    best baseline is. Without baselines three quarters of the candidates count.
    """
    if not candidates and not baselines:
        return 1.0, 10.0
    floor = min([*candidates, *baselines])
    reach = min(baselines) if baselines else sorted(candidates)[len(candidates) * 3 // 4]
    limit = floor * max((reach / floor) ** 3, 1.2)
    height = math.log(max([reach, floor * 1.05, *(value for value in baselines if value <= limit)]) / floor)
    return floor * math.exp(-0.08 * height), floor * math.exp(1.15 * height)


def _log_axis(axes: Axes, base: int) -> None:
    """A logarithmic y axis whose ticks are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log", base=base)
    axes.yaxis.set_major_locator(
        LogLocator(base, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if base == 10 else (1.0,), numticks=12)
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _label_right(axes: Axes, labels: Sequence[tuple[float, str, str, str]]) -> None:
    """Write (y, text, colour, weight) beside the right end of the axes, apart from each other, each with a leader."""
    ordered = sorted(labels)
    # Fractions of the height of the axes, of which the gap is one line of text.
    at = [float(axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1]) for y, *_ in ordered]
    for (_, text, colour, weight), place, position in zip(ordered, spread(at, 0.05), at, strict=True):
        axes.annotate(
            text,
            xy=(1.0, position),
            xytext=(1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=9,
            fontweight=weight,
            color=EMPHASIS if colour == EMPHASIS else "#222222",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 1.0,
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def spread(positions: Sequence[float], gap: float, high: float = 1.0) -> list[float]:
    """Rising positions moved as little as is easy, so that they are ``gap`` apart and not above ``high``."""
    places: list[float] = []
    for position in positions:
        places.append(max(position, places[-1] + gap) if places else position)
    limit = high
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places


def _titles(figure: Figure, axes: Axes, title: str, note: str) -> None:
    figure.suptitle(title, x=0.02, horizontalalignment="left", fontsize=12, fontweight="bold")
    if note:
        axes.set_title(textwrap.fill(note, 100), loc="left", fontsize=8.5, color=GREY)


def _describe(name: str, factors: RopeFactors) -> str:
    parts = [f"n_hat {factors.n_hat}"] if factors.n_hat else []
    parts.append(f"attention {factors.attention_factor:.4g}")
    return f"{name} ({', '.join(parts)})"


def _method(name: str) -> str:
    """The method in a name such as ``YaRN`` or ``yarn (1.208)``."""
    return re.split(r"[ ,(]", name.lower(), maxsplit=1)[0]


def _colour(name: str, names: Sequence[str]) -> str:
    unknown = [other for other in names if _method(other) not in COLOURS]
    if name in unknown:
        return OTHER_COLOURS[unknown.index(name) % len(OTHER_COLOURS)]
    return COLOURS[_method(name)]


def _style(name: str) -> Any:
    return STYLES.get(_method(name), "--")


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _short(value: float) -> str:
    """Four digits, without an exponent below a million."""
    return f"{value:.0f}" if 1000 <= value < 1e6 else f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
