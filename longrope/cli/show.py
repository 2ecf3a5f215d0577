"""``longrope show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    factors: Annotated[Path, typer.Argument(metavar="FACTORS", help="A factors or schedule file (JSON).")],
    plot: Annotated[
        Path | None, typer.Option(help="Where to draw lambda against dimension (.png or .svg).", metavar="FILE")
    ] = None,
) -> None:
    """Print factors, and plot them beside PI, NTK and YaRN."""
    from longrope.cli.outcome import print_factors, write_factor_plot
    from longrope.rope.factors import RopeFactors
    from longrope.rope.policy import Window, load_factors

    loaded = load_factors(factors)
    windows = (Window(loaded.target_length, loaded),) if isinstance(loaded, RopeFactors) else loaded.windows
    for window in windows:
        print_factors(window.factors, window.max_length)
    if plot is not None:
        write_factor_plot(windows[-1].factors, plot)
        typer.echo(f"plot: {plot}")
