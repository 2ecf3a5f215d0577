"""The results of a run in words and one table, from what its folder remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from longrope.export.recipe import inline
from longrope.lengths import format_length, parse_length
from longrope.pipeline.stages import CURRENT, EXPORTED, ORIGINAL
from longrope.pipeline.state import RunState, StageState

MODEL_NAMES = {ORIGINAL: "original", CURRENT: "extended", EXPORTED: "exported"}


def result_of(stage: StageState) -> str:
    """What came out of a stage, in one line; why it failed, if it did."""
    if stage.error is not None:
        return stage.error
    results = stage.results
    if not results:
        return ""
    told = {"search": _search, "finetune": _finetune, "readjust": _readjust, "evaluate": _evaluate, "export": _export}
    return told[stage.kind](results)


def perplexity_table(state: RunState) -> pd.DataFrame:
    """Perplexity of every method that the run's evaluations measured, a row a stage, model and method.

    Returns:
        Columns ``stage``, ``model``, ``method`` and one for each length; empty where nothing was measured.
    """
    rows = []
    for name, stage in state.stages.items():
        if stage.results.get("suite") != "perplexity":
            continue
        model = MODEL_NAMES.get(str(stage.inputs.get("settings", {}).get("of")), "")
        found: dict[str, dict[str, Any]] = {}
        for row in stage.results["table"]:
            found.setdefault(row["method"], {})[format_length(row["length"])] = row.get("perplexity")
        rows += [{"stage": name, "model": model, "method": method, **values} for method, values in found.items()]
    return pd.DataFrame(rows)


def results_section(state: RunState, names: Sequence[str]) -> str:
    """What came out of the stages of these names, and perplexities, in Markdown for the card of an exported model."""
    state = replace(state, stages={name: state.stages[name] for name in names})
    lines = ["| stage | what | result |", "|---|---|---|"]
    for name, stage in state.stages.items():
        lines.append(f"| {name} | {inline(stage.told)} | {inline(result_of(stage))} |")
    measured = perplexity_table(state)
    if measured.empty:
        return "\n".join(lines)
    lengths = sorted((name for name in measured.columns if name not in ("stage", "model", "method")), key=parse_length)
    lines += ["", "Perplexity by the context's length, as these stages measured it:", ""]
    lines += [f"| stage | model | method | {' | '.join(lengths)} |", f"|---|---|---|{'---:|' * len(lengths)}"]
    for row in measured.to_dict("records"):
        figures = " | ".join("-" if pd.isna(row[length]) else f"{row[length]:.4g}" for length in lengths)
        lines.append(f"| {row['stage']} | {row['model']} | {row['method']} | {figures} |")
    return "\n".join(lines)


def _search(results: dict[str, Any]) -> str:
    # Records from before there was another are of all tokens.
    scored, value = results.get("scored", ""), results["held_out_perplexity"] or results["search_perplexity"]
    told = f"perplexity{scored} {_figure(value)}"
    if results.get("yarn_held_out_perplexity") is not None:
        told += f" (YaRN {_figure(results['yarn_held_out_perplexity'])})"
    return f"{told}, n_hat {results['n_hat']}, {results['candidates']} candidates"


def _finetune(results: dict[str, Any]) -> str:
    held_out = results["held_out_perplexity"]
    before, after = held_out.get("before", {}), held_out.get("after", {})
    told = [
        f"{_figure(before[length])} -> {_figure(value)} at {format_length(int(length))}"
        for length, value in after.items()
        if length in before
    ]
    return ", ".join(told) or f"{results['steps']} steps"


def _readjust(results: dict[str, Any]) -> str:
    told = ", ".join(
        f"{_figure(window['held_out_perplexity'])} at {format_length(int(length))} (long factors "
        f"{_figure(window['with_long_factors'])})"
        for length, window in results["windows"].items()
    )
    scored = results.get("scored")
    return f"perplexity{scored} {told}" if scored else told


def _evaluate(results: dict[str, Any]) -> str:
    methods = list(dict.fromkeys(row["method"] for row in results["table"]))
    return f"{results['suite']} of {', '.join(methods)}"


def _export(results: dict[str, Any]) -> str:
    return f"windows {', '.join(results['windows'])}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
