"""``longrope check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.lengths import format_length, parse_length

if TYPE_CHECKING:
    from longrope.export.engines.service import Report, Row


def check(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="A model folder, or a .gguf file for llama.cpp.")],
    engine: Annotated[str, typer.Option("--engine", help="hf, vllm, sglang, llama.cpp, exllama or mlx.")],
    max_length: Annotated[
        str | None,
        typer.Option(help="Longest sequence to serve (the whole window). vLLM, llama.cpp and exllama choose by it."),
    ] = None,
    factors: Annotated[
        Path | None,
        typer.Option(help="What was measured, JSON (longrope.json beside the model).", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a serving engine will really compute; exit code 1 if that is not what was measured."""
    from longrope.export.engines.check import check as ask

    report = ask(model, engine, None if max_length is None else parse_length(max_length), factors)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report, engine)
    if not report.same:
        raise typer.Exit(1)


def _print(report: Report, engine: str) -> None:
    from rich.table import Table

    from longrope.cli.outcome import console

    drawn = Table(
        "tokens",
        "window",
        "list in use",
        "attention factor: measured",
        "in use",
        "same?",
    )
    for row in report.rows:
        used = row.used.attention_factor
        drawn.add_row(
            f"{row.first} to {format_length(row.last)}",
            format_length(row.window.max_length),
            row.used.name,
            f"{row.window.factors.attention_factor:.6g}",
            "-" if used is None else f"{used:.6g}",
            _verdict(row),
        )
    out = console()
    heading = f"{report.model} in {report.engine}, against {report.reference}"
    out.print(heading, markup=False, soft_wrap=True)
    out.print(drawn)
    service = report.service
    lines = [("crosses a window", (service.crossing,)), ("ignored", report.ignored), ("differs", service.mismatches)]
    for name, values in (*lines, ("note", service.notes), ("serve with", service.serve_with)):
        for value in values:
            out.print(f"{name}: {value}", markup=False, soft_wrap=True)
    verdict = "computes what was measured" if report.same else "does not compute what was measured"
    out.print(f"{engine} {verdict}", markup=False)


def _verdict(row: Row) -> str:
    if row.same:
        return "yes"
    plain = row.window.factors.replace(n_hat=0)
    reasons = [] if row.same_attention_factor or row.used.attention_factor is None else ["attention factor"]
    if not row.used.turns_like(plain):
        reasons.insert(0, "factors")
    elif not row.same_factors:
        reasons.insert(0, "n_hat")
    return f"no: {', '.join(reasons)}"
