"""Figures of how a search went: its candidates, its gain, and the n_hat that it tried."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from longrope.report.chart import (
    legend,
    new_chart,
    plain_log,
    whole_numbers,
)
from longrope.report.content import Plot, Table, shown
from longrope.report.palette import LIGHT, looks
from longrope.report.plots import perplexity_range
from longrope.report.search_run import SearchRun
from longrope.search.comparison import PairedDifference, paired_difference
from longrope.search.solve import SEARCHED


def convergence_plot(run: SearchRun) -> Plot | None:
    """Every candidate on the search samples, the best so far, and the baselines."""
    scores = [value for _, value in run.candidates]
    steps = improvements(run)
    if not steps:
        return None
    rivals = {method.name: method.search for method in run.rivals if method.search is not None}
    low, high = perplexity_range(
        [value for value in (*scores, *(best for _, best in steps)) if math.isfinite(value)], list(rivals.values())
    )
    figure, axes = new_chart("perplexity on the search samples")
    if high > 3 * low:
        plain_log(axes)
    axes.set_ylim(low, high)
    last = max(len(scores), steps[-1][0])
    axes.set_xlim(0, last + 1)
    inside = [(index, value) for index, value in enumerate(scores, 1) if value <= high]
    above = [index for index, value in enumerate(scores, 1) if high < value < math.inf]
    if inside:
        axes.plot(*_columns(inside), ".", color=LIGHT["axis"], markersize=4, label="candidate", zorder=2)
    if above:
        at_edge = axes.get_xaxis_transform()
        axes.plot(
            above, [0.985] * len(above), "^", color=LIGHT["axis"], markersize=3.5, transform=at_edge,
            label="above the axis", zorder=2,
        )  # fmt: skip
    look = looks([SEARCHED, *rivals])
    for name, value in rivals.items():
        if value <= high:
            axes.axhline(value, color=look[name].colour, linestyle=look[name].line, linewidth=1.4, label=name)
    line = [*steps, (last, steps[-1][1])]
    axes.plot(
        *_columns(line),
        color=look[SEARCHED].colour,
        linewidth=2.4,
        drawstyle="steps-post",
        label="best so far",
        zorder=4,
    )
    whole_numbers(axes)
    axes.set_xlabel("candidates evaluated")
    legend(figure, axes)
    hidden = [f"{name} {shown(value)}" for name, value in rivals.items() if value > high]
    failed = sum(math.isinf(value) for value in scores)
    caption = "Each dot is one candidate; the line is the best one so far." if scores else "The best one so far."
    caption += f" Triangles: {len(above)} candidates above the axis." if above else ""
    caption += f" Baselines above the axis: {', '.join(hidden)}." if hidden else ""
    caption += f" {failed} candidates failed." if failed else ""
    dropped = sum(math.isnan(value) for value in scores)
    caption += f" {dropped} candidates were clearly behind after some of the samples and dropped." if dropped else ""
    return Plot(
        "convergence",
        "Convergence",
        caption,
        f"The best of {last} candidates fell from {shown(steps[0][1])} to {shown(steps[-1][1])}; "
        + ", ".join(f"{name} {shown(value)}" for name, value in rivals.items()),
        figure,
        Table(
            ("candidates evaluated", "best so far"),
            tuple(steps),
            "Every improvement in the order of the journal" if run.candidates else "After each round",
        ),
    )


def improvements(run: SearchRun) -> list[tuple[int, float]]:
    """(candidates evaluated, best perplexity until then), by the journal, or else by round."""
    steps, best = [], math.inf
    for index, (_, value) in enumerate(run.candidates, 1):
        if value < best:
            best = value
            steps.append((index, value))
    recorded = run.provenance.get("results", {}).get("convergence", ())
    return steps or [(int(count), float(value)) for count, value in recorded]


def gain_plot(run: SearchRun) -> Plot | None:
    """How much better than the baseline the best so far is, on the search samples and on held-out documents."""
    reference = run.reference
    if reference is None or reference.candidate is None or reference.search is None or not run.candidates:
        return None
    target = run.factors.target_length
    against = run.result(reference.candidate)
    searched: list[tuple[int, float]] = []
    held_out: list[tuple[int, PairedDifference]] = []
    best = math.inf
    for index, (candidate, value) in enumerate(run.candidates, 1):
        if value < best:
            best = value
            searched.append((index, math.log(reference.search / value)))
            difference = paired_difference(against, run.result(candidate), target)
            if difference is not None:
                held_out.append((index, difference))
    if not searched:
        return None
    figure, axes = new_chart(f"nats per token better than {reference.name}")
    axes.axhline(0, color=LIGHT["axis"], linewidth=1.2)
    line = [*searched, (len(run.candidates), searched[-1][1])]
    axes.plot(*_columns(line), color=LIGHT["longrope"], linewidth=2.4, drawstyle="steps-post", label="search samples")
    if held_out:
        errors = [2 * each.standard_error for _, each in held_out]
        joined = "--" if len(held_out) > 2 else ""  # two points are no curve
        axes.errorbar(
            [index for index, _ in held_out], [each.mean for _, each in held_out], yerr=errors, fmt=f"D{joined}",
            color=LIGHT["pi"], markersize=6, capsize=3, linewidth=1.2, label="held-out documents", zorder=5,
        )  # fmt: skip
    axes.set_xlim(0, len(run.candidates) * 1.03 + 1)
    ends = [value for _, value in searched] + [each.mean + 2 * each.standard_error for _, each in held_out]
    top = max(0.0, *ends)
    bottom = min(0.0, *ends, *(each.mean for _, each in held_out))
    seeds_below = top > 0 and bottom < -1.5 * top  # where a search starts says little beside where it ends
    bottom = -1.5 * top if seeds_below else bottom
    room = 0.08 * (top - bottom) or 0.1
    axes.set_ylim(bottom - room, top + room)
    whole_numbers(axes)
    axes.set_xlabel("candidates evaluated")
    legend(figure, axes)
    caption = (
        f"The best candidate so far against {reference.label}, above 0 where it is better. Held-out documents decide "
        "nothing in a search. They are scored once, at its end, for the result and the baselines: they have a point "
        "where the best so far is one of these; bars are two paired standard errors."
    )
    caption += " The start of the search is below the axis." if seeds_below else ""
    if not held_out:
        caption += " Here they have none: no held-out scores in the journal."
    after = dict(held_out)
    rows = tuple(
        (index, value, after[index].mean if index in after else None, _two_errors(after.get(index)))
        for index, value in searched
    )
    last = f"; on held-out documents {shown(held_out[-1][1].mean)}" if held_out else ""
    return Plot(
        "gain",
        f"Gain over {reference.name}, searched and held out",
        caption,
        f"At the end of the search the best candidate is {shown(searched[-1][1])} nats per token better than "
        f"{reference.label} on the search samples{last}.",
        figure,
        Table(("candidates evaluated", "search samples", "held out", "two standard errors"), rows),
    )


def _two_errors(difference: PairedDifference | None) -> float | None:
    return None if difference is None else 2 * difference.standard_error


def n_hat_plot(run: SearchRun) -> Plot | None:
    """How often each n_hat was tried, and how often among the better candidates."""
    valid = [(candidate, value) for candidate, value in run.candidates if math.isfinite(value)]
    if not valid:
        return None
    ranked = sorted(valid, key=lambda scored: scored[1])
    better = ranked[: max(len(ranked) // 4, 1)]
    tried = Counter(candidate.n_hat for candidate, _ in valid)
    good = Counter(candidate.n_hat for candidate, _ in better)
    choices = sorted({*tried, *(run.header or {}).get("n_hat_choices", ())})
    figure, axes = new_chart("candidates")
    places = range(len(choices))
    axes.bar(places, [tried[choice] for choice in choices], color=LIGHT["axis"], alpha=0.75, width=0.8, label="all")
    axes.bar(places, [good[choice] for choice in choices], color=LIGHT["longrope"], width=0.45, label="best quarter")
    axes.set_xticks(list(places), [str(choice) for choice in choices], rotation=90 if len(choices) > 9 else 0)
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("n_hat in tokens")
    legend(figure, axes)
    found = run.factors.n_hat
    means = {
        choice: float(np.mean([value for candidate, value in valid if candidate.n_hat == choice]))
        for choice in choices
        if tried[choice]
    }
    return Plot(
        "n-hat",
        "Start tokens left alone",
        f"Candidates by n_hat, the number of start tokens that keep their plain rotation. The result has {found}. A "
        "search tries more of what did well, so frequent does not mean better by itself.",
        ", ".join(f"{choice}: {tried[choice]} candidates, {good[choice]} in the best quarter" for choice in choices),
        figure,
        Table(
            ("n_hat", "candidates", "in the best quarter", "mean perplexity"),
            tuple((choice, tried[choice], good[choice], means.get(choice)) for choice in choices),
        ),
    )


def _columns(points: list[tuple[int, Any]]) -> tuple[list[int], list[Any]]:
    return [x for x, _ in points], [y for _, y in points]
