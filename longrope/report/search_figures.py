"""Figures of a search: how it converged, what it found, and how that reads a long text."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from longrope.evaluation.bootstrap import bootstrap_ratio
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
    plain_log,
    positive_axis,
    text,
    whole_numbers,
)
from longrope.report.content import Plot, Table, shown
from longrope.report.palette import LIGHT, looks
from longrope.report.plots import perplexity_range
from longrope.report.search_run import ComparedMethod, SearchRun, block_tokens
from longrope.rope.critical_dimension import critical_pair
from longrope.search.candidate import Candidate
from longrope.search.comparison import PairedDifference, paired_difference
from longrope.search.solve import SEARCHED

_BINS = 24


def convergence_plot(run: SearchRun) -> Plot | None:
    """Every candidate on the search samples, the best so far, and the baselines."""
    scores = [value for _, value in run.candidates]
    steps = improvements(run)
    if not steps:
        return None
    rivals = {method.name: method.search for method in run.rivals if method.search is not None}
    low, high = perplexity_range([value for value in scores if math.isfinite(value)], list(rivals.values()))
    figure, axes = new_chart("perplexity on the search samples")
    if high > 3 * low:
        plain_log(axes)
    axes.set_ylim(low, high)
    axes.set_xlim(0, len(scores) + 1)
    inside = [(index, value) for index, value in enumerate(scores, 1) if value <= high]
    above = [index for index, value in enumerate(scores, 1) if high < value < math.inf]
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
    line = [*steps, (len(scores), steps[-1][1])]
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
    caption = "Each dot is one candidate; the line is the best one so far."
    caption += f" Triangles: {len(above)} candidates above the axis." if above else ""
    caption += f" Baselines above the axis: {', '.join(hidden)}." if hidden else ""
    caption += f" {failed} candidates failed." if failed else ""
    return Plot(
        "convergence",
        "Convergence",
        caption,
        f"The best of {len(scores)} candidates fell from {shown(steps[0][1])} to {shown(steps[-1][1])}; "
        + ", ".join(f"{name} {shown(value)}" for name, value in rivals.items()),
        figure,
        Table(
            ("candidates evaluated", "best so far"),
            tuple(steps),
            "Rounds that improved on the best, or every improvement where rounds are not recorded",
        ),
    )


def improvements(run: SearchRun) -> list[tuple[int, float]]:
    """(candidates evaluated, best perplexity until then): after each round, as the search recorded it."""
    recorded = run.provenance.get("results", {}).get("convergence")
    if recorded:
        return [(int(count), float(value)) for count, value in recorded]
    steps, best = [], math.inf
    for index, (_, value) in enumerate(run.candidates, 1):
        if value < best:
            best = value
            steps.append((index, value))
    return steps


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
        axes.errorbar(
            [index for index, _ in held_out], [each.mean for _, each in held_out], yerr=errors, fmt="D--",
            color=LIGHT["pi"], markersize=6, capsize=3, linewidth=1.2, label="held-out documents", zorder=5,
        )  # fmt: skip
    axes.set_xlim(0, len(run.candidates) * 1.03 + 1)
    whole_numbers(axes)
    axes.set_xlabel("candidates evaluated")
    legend(figure, axes)
    caption = (
        f"The best candidate so far against {reference.label}, above 0 where it is better. Held-out documents decide "
        "nothing in a search. They are scored once, at its end, for the result and the baselines: they have a point "
        "where the best so far is one of these; bars are two paired standard errors."
    )
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


def factors_plot(run: SearchRun) -> Plot:
    """Lambda against the rotated pair, beside the baselines."""
    factors = run.factors
    curves: dict[str, tuple[float, ...]] = {SEARCHED: factors.lambdas}
    for method in run.rivals:
        if method.candidate is not None and method.candidate.lambdas not in curves.values():
            curves[method.name] = method.candidate.lambdas
    figure, axes = new_chart("lambda")
    every = [value for curve in curves.values() for value in curve]
    low, high = min(*every, 1.0), max(*every, factors.ratio)
    if high >= 4 * low:
        plain_log(axes, 2)
        axes.set_ylim(low / (high / low) ** 0.05, high * (high / low) ** 0.08)
    look = looks(list(curves))
    for name, values in curves.items():
        own = look[name]
        axes.plot(
            range(len(values)), values, color=own.colour, linestyle=own.line, linewidth=own.width, label=name,
            marker=own.marker if name == SEARCHED else "", markersize=3.5, zorder=4 if name == SEARCHED else 3,
        )  # fmt: skip
    axes.axhline(factors.ratio, color=LIGHT["grid"], linewidth=4, label=f"s = {factors.ratio:g}", zorder=1)
    critical = critical_pair(factors.rope_theta, factors.rotary_dim, factors.original_length)
    marked = critical < len(factors.lambdas)
    if marked:
        axes.axvline(critical, color=LIGHT["muted"], linestyle=":", linewidth=1.4, zorder=2)
        text(axes, critical, 0.99, f" critical {critical}", transform=axes.get_xaxis_transform(), va="top")
    axes.set_xlim(-0.5, len(factors.lambdas) - 0.5)
    whole_numbers(axes)
    axes.set_xlabel("pair of dimensions (fast to slow)")
    legend(figure, axes)
    missing = [method.name for method in run.rivals if method.candidate is None]
    caption = (
        f"By how much each rotated pair is slowed down; s = {factors.ratio:g} is the target over the original length."
    )
    if marked:
        caption += f" From the critical pair {critical} on, a pair made less than one turn in pretraining."
    else:
        caption += " Every pair made at least one turn in pretraining, so there is no critical pair."
    caption += f" Not in the journal: {', '.join(missing)}." if missing else ""
    return Plot(
        "factors",
        "Lambda against dimension",
        caption,
        "; ".join(f"{name}: lambda {values[0]:g} to {values[-1]:g}" for name, values in curves.items())
        + (f"; critical pair {critical}" if marked else ""),
        figure,
        Table(
            ("pair", *curves),
            tuple((index, *values) for index, values in enumerate(zip(*curves.values(), strict=True))),
        ),
    )


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
    axes.bar(places, [tried[choice] for choice in choices], color=LIGHT["axis"], alpha=0.55, width=0.8, label="all")
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


def position_plot(run: SearchRun) -> Plot | None:
    """Perplexity by position in texts of the target length."""
    factors = run.factors
    methods = [method for method in (*run.rivals, run.searched) if method is not None]
    # Methods that are the same at this length, such as NTK and dynamic NTK, are drawn once.
    known: dict[Candidate, str] = {}
    for method in methods:
        if method.candidate is not None:
            known[method.candidate] = (
                f"{known[method.candidate]}, {method.name}" if method.candidate in known else method.name
            )
    blocks = {name: found for candidate, name in known.items() if (found := run.blocks(candidate)) is not None}
    if not blocks:
        return None
    tokens = block_tokens(factors.target_length)
    edges = np.unique(np.geomspace(1, len(tokens), min(_BINS, len(tokens))).astype(int))
    starts = np.concatenate([[0], edges[:-1]])
    ends = [min(int(edge) * 256, factors.target_length) for edge in edges]
    series = []
    for name, nll in blocks.items():
        values = []
        for first, last in zip(starts, edges, strict=True):
            share, count = nll[:, first:last].sum(axis=1), float(tokens[first:last].sum())
            spread = bootstrap_ratio(share, [count] * len(share), np.exp)
            values.append((math.exp(float(share.sum()) / (count * len(share))), spread.low, spread.high))
        y, low, high = (tuple(column) for column in zip(*values, strict=True))
        series.append(Series(name, tuple(map(float, ends)), y, low, high))
    figure, axes = new_chart("perplexity")
    draw_lines(axes, series)
    top = positive_axis(axes, [value for each in series for value in each.y], best_at_each(series))
    doublings = [factors.target_length >> power for power in range(24) if factors.target_length >> power >= ends[0]]
    length_axis(axes, [*doublings, ends[0]], "position in the text, in tokens")
    if ends[0] <= factors.original_length < factors.target_length:
        axes.axvline(factors.original_length, color=LIGHT["muted"], linestyle=":", linewidth=1.4, zorder=1)
    legend(figure, axes)
    kind = f"{len(run.held_out)} held-out documents" if run.held_out else f"{len(run.samples)} search samples"
    rows = []
    for index, (first, end) in enumerate(zip(starts, ends, strict=True)):
        values_at = [f"{shown(e.y[index])} ({shown(e.low[index])} to {shown(e.high[index])})" for e in series]
        rows.append((f"{int(first) * 256} to {end}", *values_at))
    return Plot(
        "position",
        "Perplexity by position",
        f"Texts of {format_length(factors.target_length)} tokens, {kind}; each point is the mean up to its position from the "
        f"point before it. The dotted line is the end of the original window, {format_length(factors.original_length)}. "
        "The band is the 95% interval over documents." + note_above(series, top),
        in_words(series, "at position"),
        figure,
        Table(("position", *(each.name for each in series)), tuple(rows), "With 95% intervals over documents"),
    )


def held_out_plot(run: SearchRun) -> Plot | None:
    """Held-out perplexity by length, of the better row of each method."""
    methods = [method for method in (*run.rivals, run.searched) if method is not None]
    lengths = sorted({length for method in methods for length in method.held_out})
    if len(lengths) < 2 or not run.held_out:
        return None
    series = [
        Series(
            method.name,
            tuple(map(float, lengths)),
            tuple(_number(method.held_out.get(length)) for length in lengths),
        )
        for method in methods
    ]
    figure, axes = new_chart("perplexity on held-out documents")
    draw_lines(axes, series)
    top = positive_axis(axes, [value for each in series for value in each.y], best_at_each(series))
    length_axis(axes, lengths)
    legend(figure, axes)
    return Plot(
        "held-out",
        "Held-out perplexity by length",
        f"{len(run.held_out)} documents that the search has not seen, cut to each length, so that lengths have different "
        "tokens. Of each method the attention factor that does better at the target; the table has both."
        + note_above(series, top),
        in_words(series),
        figure,
        Table(
            ("method", *(format_length(length) for length in lengths)),
            tuple((method.label, *(method.held_out.get(length) for length in lengths)) for method in methods),
        ),
    )


def difference_plot(run: SearchRun) -> Plot | None:
    """Paired differences from the searched factors at the target length, on held-out documents."""
    found = differences(run)
    if not found:
        return None
    found = dict(sorted(found.items(), key=lambda each: each[1].mean))
    nearest = next(iter(found.values())).mean
    limit = max(6 * abs(nearest), min(each.mean for each in found.values()) + 0.2)
    figure, axes = new_chart(height=1.2 + 0.32 * len(found))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=LIGHT["grid"], linewidth=0.8)
    look = looks([method.name for method in found])
    for place, (method, each) in enumerate(found.items()):
        own = look[method.name]
        inside = each.mean <= limit
        axes.errorbar(
            [min(each.mean, limit)], [place], xerr=[2 * each.standard_error] if inside else None,
            fmt=own.marker if inside else ">", color=own.colour, markersize=7, capsize=3, linewidth=1.6,
        )  # fmt: skip
    axes.axvline(0, color=LIGHT["longrope"], linewidth=2)
    axes.set_yticks(range(len(found)), [method.name for method in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel("nats per token worse than longrope")
    beyond = [f"{method.name} {shown(each.mean)}" for method, each in found.items() if each.mean > limit]
    target = format_length(run.factors.target_length)
    count = next(iter(found.values())).documents
    return Plot(
        "difference",
        "Against the searched factors",
        f"Loss per token minus that of the searched factors on the same {count} held-out documents of {target} tokens; "
        "right of 0 is worse. Bars are two paired standard errors."
        + (f" Beyond the axis: {', '.join(beyond)}." if beyond else ""),
        "; ".join(
            f"{method.name}: {shown(each.mean)} nats per token, standard error {shown(each.standard_error)}"
            for method, each in found.items()
        ),
        figure,
        Table(
            ("method", "nats per token", "standard error", "documents"),
            tuple((method.label, each.mean, each.standard_error, each.documents) for method, each in found.items()),
        ),
    )


def differences(run: SearchRun) -> dict[ComparedMethod, PairedDifference]:
    """Each rival minus the searched factors, where the journal has both."""
    if run.searched is None or run.searched.candidate is None:
        return {}
    searched = run.result(run.searched.candidate)
    found = {}
    for method in run.rivals:
        if method.candidate is not None:
            difference = paired_difference(run.result(method.candidate), searched, run.factors.target_length)
            if difference is not None:
                found[method] = difference
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _columns(points: list[tuple[int, Any]]) -> tuple[list[int], list[Any]]:
    return [x for x, _ in points], [y for _, y in points]
