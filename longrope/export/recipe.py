"""How factors were made and what was measured then, in Markdown, from the provenance in their file.

Provenance is free JSON that may come from anywhere: what is missing or has another form is left out.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longrope.lengths import format_length
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window
from longrope.search.settings import ALGORITHMS, PAPER

_SIZES = (
    "algorithm",
    "population",
    "mutations",
    "crossovers",
    "parents",
    "mutation_probability",
    "iterations",
    "max_evaluations",
    "max_gpu_hours",
    "patience",
    "lambda_max",
)
_DATA = {
    "field": "text",
    "split": "train",
    "revision": None,
    "config": None,
    "samples": None,
    "max_documents": None,
    "objective": "perplexity",
    "last": None,
}
"""Settings of the documents, with what the command takes when they are not given."""


def recipe(schedule: FactorSchedule) -> list[str]:
    """A paragraph, a table and a command for each window; windows that were made together share one."""
    groups: list[list[Window]] = []
    for window in schedule.windows:
        if groups and _made(window.factors) == _made(groups[-1][0].factors):
            groups[-1].append(window)
        else:
            groups.append([window])
    return [part for group in groups for part in _of_windows(group)]


def method(factors: RopeFactors) -> str:
    """Where factors come from, in a few words."""
    name = _made(factors).get("method")
    if name:
        return inline(name)
    return "plain RoPE" if set(factors.lambdas) == {1.0} else "not recorded"


def inline(value: object) -> str:
    """Text for one line or cell of Markdown; a path is reduced to its last part."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    return Path(text).name if text.startswith(("/", "~", "./", "../")) else text


def model_name(name: object) -> str:
    """A model as a command takes it and readers elsewhere understand it."""
    from longrope.demo import model_folder

    return "demo" if name == str(model_folder()) else inline(name)


def _made(factors: RopeFactors) -> Mapping[str, Any]:
    return factors.provenance


def _of_windows(windows: Sequence[Window]) -> Iterator[str]:
    made = _made(windows[0].factors)
    names = ", ".join(format_length(window.max_length) for window in windows)
    yield f"### Window{'s' if len(windows) > 1 else ''} {names}"
    if not made:
        yield f"Made by: {method(windows[0].factors)}."
        return
    yield "\n".join(_facts(windows[0].factors, made))
    yield from _results(made)
    command = _command(made)
    if command:
        yield f"To search again:\n\n    {command}"


def _facts(factors: RopeFactors, made: Mapping[str, Any]) -> Iterator[str]:
    model, data, settings = (_object(made, name) for name in ("model", "data", "settings"))
    results = _object(made, "results")
    yield f"- method: {method(factors)}" + (f"; here {inline(made['replaced'])}" if made.get("replaced") else "")
    if model:
        revision = f", revision {inline(model['revision'])}" if model.get("revision") else ""
        yield f"- model: {model_name(model.get('name'))}{revision}, fingerprint {inline(model.get('fingerprint'))}"
    if data:
        drawn = _object(data, "drawn")
        counts = [f"{len(drawn[name])} {label}" for name, label in _DRAWN if _sized(drawn.get(name))]
        yield f"- data: {inline(data.get('source'))}" + (f" ({', '.join(counts)})" if counts else "")
    if results.get("evaluations") is not None:
        yield f"- candidates evaluated: {inline(results['evaluations'])}"
    if "seed" in made:
        yield f"- seed: {inline(made['seed'])}"
    if settings:
        named = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
        yield "- settings: " + ", ".join(f"{inline(name)} {inline(json.dumps(value))}" for name, value in named.items())
    for name in ("source", "form", "sha256", "notes", "versions"):  # the first four are of imported factors
        if made.get(name):
            yield f"- {name}: {_listed(made[name])}"


_DRAWN = (("search", "search samples"), ("held_out", "held-out samples"))


def _results(made: Mapping[str, Any]) -> Iterator[str]:
    """The table of methods, if the file has one."""
    rows = _object(made, "results").get("methods")
    rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
    if not rows:
        return
    lengths = list(dict.fromkeys(length for row in rows for length in _object(row, "held_out_perplexity")))
    settings = _object(made, "settings")
    searched = settings.get("target_length", settings.get("window"))
    columns = ["method", "attention factor", f"search samples{_tokens(searched)}"]
    columns += [f"held out{_tokens(length)}" for length in lengths]
    lines = [_row(columns), _row(["---", *("---:" for _ in columns[1:])])]
    for row in rows:
        held_out = _object(row, "held_out_perplexity")
        values = [row.get("attention_factor"), row.get("search_perplexity"), *(held_out.get(each) for each in lengths)]
        lines.append(_row([inline(row.get("method")), *map(_number, values)]))
    yield (
        "Perplexity as measured in that run, with the model and the dtype named above, under the whole factors "
        "(n_hat included). The search samples chose the factors; held-out documents had no part in that."
    )
    yield "\n".join(lines)


def _command(made: Mapping[str, Any]) -> str | None:
    """The command that repeats a search or a readjustment; None for factors made otherwise."""
    model, data, settings = (_object(made, name) for name in ("model", "data", "settings"))
    kind = next((kind for kind in ("search", "readjust") if f"longrope {kind}" in str(made.get("method"))), None)
    length = settings.get("target_length" if kind == "search" else "window")
    if kind is None or type(length) is not int or not model or not data:
        return None
    if settings.get("algorithm", PAPER) not in ALGORITHMS:
        return None  # of another version
    words = ["longrope", kind, model_name(model.get("name"))]
    if model.get("revision"):
        words += ["--model-revision", str(model["revision"])]
    words += ["--target-length" if kind == "search" else "--windows", format_length(length)]
    words += ["--data", inline(data.get("source"))]
    for name, default in _DATA.items():
        if data.get(name, default) != default:
            words += [f"--{name.replace('_', '-')}", str(data[name])]
    if "held_out" in data:
        words += ["--held-out", str(data["held_out"])]
    words += ["--concatenate"] if data.get("concatenate") is True else []
    words += ["--seed", str(made.get("seed", 0))]
    for name in _SIZES:
        if settings.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    if settings.get("algorithm"):
        words += ["--racing" if settings.get("racing") else "--no-racing"]
    choices = settings.get("n_hat_choices")
    if isinstance(choices, list) and choices:
        words += ["--n-hat", ",".join(map(str, choices))]
    # What a readjustment was told is not recorded, but what came of it is: a factor, or a search for one.
    told = "search" if "attention_span" in settings else settings.get("attention_factor")
    factor = settings.get("attention_factor_rule", told)
    words += ["--attention-factor", str(factor)] if factor is not None else []
    words += ["--dtype", str(settings["dtype"])] if settings.get("dtype") else []
    return shlex.join([*words, "--output", "RUN"])


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def _sized(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _listed(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{inline(name)} {inline(each)}" for name, each in value.items())
    return "; ".join(map(inline, value)) if isinstance(value, list) else inline(value)


def _tokens(length: object) -> str:
    text = str(length)
    return f", {format_length(int(text))} tokens" if text.isascii() and text.isdigit() and int(text) else ""


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return "-"
    return f"{value:.4f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
