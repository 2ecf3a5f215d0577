"""Figures of a fine-tuning run: what was logged of each step, and perplexity before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longrope.lengths import format_length
from longrope.report.chart import (
    TEXT,
    Series,
    draw_lines,
    in_words,
    legend,
    length_axis,
    new_chart,
    positive_axis,
    whole_numbers,
)
from longrope.report.content import Plot, Table, shown
from longrope.report.finetune_run import FinetuneRun
from longrope.report.palette import LIGHT

_CURVES = (
    ("loss", "loss", "Loss", "nats per token", "Mean loss of the training segments of each step."),
    ("lr", "learning_rate", "Learning rate", "learning rate", "As the schedule gave it to each step."),
    ("speed", "tokens_per_second", "Speed", "tokens per second", "Over all devices, since the line before."),
    (
        "memory",
        "peak_memory_gib",
        "Peak memory",
        "GiB",
        "Most that the first process has held so far: of its GPU in tensors, or of main memory without a GPU.",
    ),
    ("gradient", "grad_norm", "Gradient norm", "norm before clipping", "Before clipping."),
    ("mfu", "mfu", "Utilisation", "causal MFU", "Model FLOPs of causal attention as a share of the devices' peak."),
)
_ROWS = 100
"""Rows of a table of steps; longer runs are thinned out, and the file of metrics has them all."""
_SMOOTHED_FROM = 60


def curves(run: FinetuneRun) -> list[Plot]:
    """A figure for everything that was logged."""
    plots = []
    for name, key, title, label, caption in _CURVES:
        points = [(entry["step"], float(entry[key])) for entry in run.steps if _is_number(entry.get(key))]
        if points:
            plots.append(_curve(run, name, title, label, caption, points))
    return plots


def _curve(
    run: FinetuneRun, name: str, title: str, label: str, caption: str, points: Sequence[tuple[int, float]]
) -> Plot:
    steps, values = [step for step, _ in points], [value for _, value in points]
    figure, axes = new_chart(label)
    smoothed = name in ("loss", "gradient", "speed") and len(points) >= _SMOOTHED_FROM
    if smoothed:
        width = max(len(points) // 25, 5)
        axes.plot(steps, values, color=LIGHT["axis"], linewidth=0.8, alpha=0.7, label="each step")
        axes.plot(steps, _running_mean(values, width), color=LIGHT["longrope"], linewidth=2.2, label=f"mean of {width}")
        legend(figure, axes)
    else:
        marker = "o" if len(points) <= 30 else ""
        axes.plot(steps, values, color=LIGHT["longrope"], linewidth=2, marker=marker, markersize=4)
    if name in ("lr", "speed", "memory", "mfu"):
        axes.set_ylim(0, max(*values, 1e-12) * 1.1)
    if name == "lr":
        power = math.floor(math.log10(max(*values, 1e-12)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value / 10.0**power:.3g}")
        axes.set_title(f"{label}, in 1e{power}", loc="left", fontsize=TEXT, color=LIGHT["muted"])
    axes.set_xlim(0, max(run.settings.steps, steps[-1]) * 1.02)
    whole_numbers(axes)
    axes.set_xlabel("optimizer step")
    stride = math.ceil(len(points) / _ROWS)
    kept = [point for index, point in enumerate(points) if index % stride == 0 or index == len(points) - 1]
    thinned = f"Every {stride} lines of metrics.jsonl" if stride > 1 else ""
    return Plot(
        name,
        title,
        caption,
        f"{shown(values[0])} at step {steps[0]}, {shown(values[-1])} at step {steps[-1]}; lowest {shown(min(values))}, "
        f"highest {shown(max(values))}.",
        figure,
        Table(("step", label), tuple(kept), thinned),
    )


def held_out_plot(run: FinetuneRun) -> Plot | None:
    """Perplexity on held-out text before and after."""
    lengths = sorted({length for values in run.held_out.values() for length in values})
    if not lengths:
        return None
    series = [
        Series(name, tuple(map(float, lengths)), tuple(values.get(length, math.nan) for length in lengths))
        for name, values in run.held_out.items()
    ]
    figure, axes = new_chart("perplexity on held-out text")
    draw_lines(axes, series)
    every = [value for each in series for value in each.y]
    positive_axis(axes, every, every)
    length_axis(axes, lengths)
    legend(figure, axes)
    count = run.settings.held_out.samples
    return Plot(
        "held-out",
        "Held-out perplexity, before and after",
        f"{count} documents that were not trained on, at each length with the factors of that length.",
        in_words(series),
        figure,
        held_out_table(run),
    )


def held_out_table(run: FinetuneRun) -> Table:
    """Before, after and the change, by length."""
    before, after = (run.held_out.get(name, {}) for name in ("before", "after"))
    rows = []
    for length in sorted({*before, *after}):
        first, last = before.get(length), after.get(length)
        change = None if first is None or last is None else f"{last / first - 1:+.1%}"
        rows.append((format_length(length), first, last, change))
    return Table(("length", "before", "after", "change"), tuple(rows), "Perplexity on held-out text")


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of up to ``width`` values that end at each."""
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - width + 1) : i + 1])]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
