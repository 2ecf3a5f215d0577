"""``longrope export``: one command a file format that other engines read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options as o
from longrope.cli.progress import PLAIN_LINE_SECONDS
from longrope.lengths import format_length, parse_length

if TYPE_CHECKING:
    from longrope.export.gguf_file import Report

export = typer.Typer(help="Write a model file of another engine with the factors.", no_args_is_help=True)


@export.callback()
def _export() -> None:
    """Write a model file of another engine with the factors."""


@export.command()
def gguf(
    base: Annotated[Path, typer.Option("--base", help="GGUF file of the model, in any quantisation.", metavar="FILE")],
    factors: o.Factors,
    output: Annotated[Path, typer.Option("--output", "-o", help="GGUF file to write.", metavar="FILE")],
    short_window: Annotated[
        str | None,
        typer.Option(
            help="Window whose factors become the short list; the largest up to the pretraining length by default.",
            metavar="LENGTH",
        ),
    ] = None,
    without_n_hat: Annotated[
        bool, typer.Option("--without-n-hat", help="Use the best candidate with n_hat = 0 where n_hat is not 0.")
    ] = False,
) -> None:
    """Write a GGUF file that llama.cpp serves with the factors."""
    from longrope.export.gguf import export_gguf
    from longrope.rope.policy import load_factors

    loaded = load_factors(factors)
    window = None if short_window is None else parse_length(short_window)
    with _progress(f"writing {output.name}") as report:
        exported = export_gguf(base, loaded, output, window, without_n_hat, report)
    long = exported.long
    typer.echo(
        f"{output}: short list of window {format_length(exported.short.max_length)}, long list of window "
        f"{format_length(long.max_length)}, attention factor {long.factors.attention_factor:.4f}"
    )
    for loss in exported.losses:
        typer.echo(f"note: {loss}")
    typer.echo(f"serve: llama-server -m {output} -c {long.max_length}")


@contextmanager
def _progress(description: str) -> Iterator[Report]:
    """A bar of bytes on a terminal, a line now and then elsewhere, both on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bars.add_task(description, total=None)
    spoken = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal spoken
        bars.update(task, completed=done, total=total)
        if not console.is_terminal and time.monotonic() - spoken >= PLAIN_LINE_SECONDS:
            spoken = time.monotonic()
            console.print(f"{description}: {done / 1e9:.1f} of {total / 1e9:.1f} GB", markup=False, soft_wrap=True)

    with bars:
        yield report
