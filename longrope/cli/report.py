"""``longrope report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of searches, readjustments, fine-tuning runs and evaluations."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder that receives the page and the plots (report in the run's folder).",
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """Write one HTML page that shows what runs found, and their plots as PNG and SVG."""  # fmt: skip
    from longrope.cli.outcome import console
    from longrope.report.write import write_report

    written = write_report(runs, output)
    out = console()
    out.print(f"report: {written.page}", markup=False, soft_wrap=True)
    out.print(f"{len(written.plots)} files of plots in {written.page.parent / 'plots'}", markup=False, soft_wrap=True)
