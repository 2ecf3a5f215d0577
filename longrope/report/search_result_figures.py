"""Figures of what a search found: the factors, and how they read a text beside other methods."""

from __future__ import annotations

import math

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
from longrope.report.search_run import ComparedMethod, SearchRun, block_tokens
from longrope.rope.critical_dimension import critical_pair
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear, ntk, yarn
from longrope.search.candidate import Candidate
from longrope.search.comparison import PairedDifference, paired_difference
from longrope.search.solve import SEARCHED

_BINS = 24
_PUBLISHED = {"pi": linear, "ntk": ntk, "yarn": yarn}


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
        f"{len(run.held_out)} documents that the search has not seen, cut to each length, so that lengths have "
        "different tokens. Of each method the attention factor that does better at the target; the table has both."
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


def position_plot(run: SearchRun) -> Plot | None:
    """Perplexity by position in texts of the target length; None where only their ends count."""
    if run.scored_part:
        return None
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
        f"Texts of {format_length(factors.target_length)} tokens, {kind}; each point is the mean from the point before "
        "it up to its position. The dotted line is the end of the original window, "
        f"{format_length(factors.original_length)}. The band is the 95% interval over documents."
        + note_above(series, top),
        in_words(series, "at position"),
        figure,
        Table(("position", *(each.name for each in series)), tuple(rows), "With 95% intervals over documents"),
    )


def factors_plot(run: SearchRun) -> Plot:
    """Lambda against the rotated pair, beside the baselines."""
    factors = run.factors
    curves = {SEARCHED: factors.lambdas}
    for name, lambdas in _rivals_lambdas(run).items():
        if lambdas not in curves.values():
            curves[name] = lambdas
    figure, axes = new_chart("lambda")
    every = [value for curve in curves.values() for value in curve]
    low, high = min(*every, 1.0), max(*every, factors.ratio, 1.0)
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
    extends = factors.ratio > 1
    if extends:
        ratio = f"s = {factors.ratio:g}"
        axes.axhline(factors.ratio, color=LIGHT["axis"], alpha=0.35, linewidth=4, label=ratio, zorder=1)
    critical = critical_pair(factors.rope_theta, factors.rotary_dim, factors.original_length)
    marked = critical < len(factors.lambdas)
    if marked:
        axes.axvline(critical, color=LIGHT["muted"], linestyle=":", linewidth=1.4, zorder=2)
        text(axes, critical, 0.1, f" critical {critical}", transform=axes.get_xaxis_transform())
    axes.set_xlim(-0.5, len(factors.lambdas) - 0.5)
    whole_numbers(axes)
    axes.set_xlabel("pair of dimensions (fast to slow)")
    legend(figure, axes)
    missing = [method.name for method in run.rivals if method.name not in _rivals_lambdas(run)]
    caption = "By how much each rotated pair is slowed down."
    caption += f" s = {factors.ratio:g} is the target over the original length." if extends else ""
    if marked:
        caption += f" From the critical pair {critical} on, a pair made less than one turn in pretraining."
    else:
        caption += " Every pair made at least one turn in pretraining, so there is no critical pair."
    caption += f" Not known here: {', '.join(missing)}." if missing else ""
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


def _rivals_lambdas(run: SearchRun) -> dict[str, tuple[float, ...]]:
    """Lambdas at the target by method: from the journal, or of the published methods where the model was plain."""
    found = {method.name: method.candidate.lambdas for method in run.rivals if method.candidate is not None}
    present = run.provenance.get("present", {}).get("lambdas")
    if present is not None and all(value == 1 for value in present):
        factors = run.factors
        plain = RopeFactors.identity(factors.rope_theta, factors.rotary_dim, factors.original_length)
        published = {"none": plain, **{name: make(plain, factors.target_length) for name, make in _PUBLISHED.items()}}
        found = {
            method.name: published[method.name].lambdas for method in run.rivals if method.name in published
        } | found
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
