"""``longrope extend``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def extend(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe (YAML), or the name of one that comes with longrope.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings in place of the recipe's: model=..., search-128k.algorithm.max_evaluations=200.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run (runs/ and the recipe's name).", metavar="DIR"),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Do everything on this Ray cluster: auto, or host:port.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that can be checked before hours are spent, and stop.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin even though a stage does not seem to fit this machine.")
    ] = False,
) -> None:
    """Carry out a recipe: search, fine-tune, search further, readjust, evaluate, export.

    The same command goes on where it was interrupted; stages whose settings changed are done again.
    """
    from longrope.cli.outcome import console, print_extend
    from longrope.cli.progress import ConsoleProgress
    from longrope.pipeline.recipe import read_recipe
    from longrope.pipeline.run import extend as run_extend
    from longrope.pipeline.run import on_cluster

    read = read_recipe(recipe, changes or ())
    if ray_address is not None:
        read = on_cluster(read, ray_address)
    folder = output or Path("runs") / read.name
    with ConsoleProgress() as progress:
        if dry_run:
            from longrope.exceptions import SettingsError
            from longrope.pipeline.dry_run import dry_run as check

            problems = check(read, folder, progress)
            for problem in problems[:-1]:
                progress.note(f"error: {problem}")
            if problems:
                raise SettingsError(problems[-1])
        else:
            report = run_extend(read, folder, progress, force)
    if dry_run:
        console().print(f"{len(read.stages)} stages checked: nothing stands in their way", markup=False)
    else:
        print_extend(report)
