"""``longrope demo``: the whole path on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings in place of the recipe's: seed=1, search-8k.algorithm.max_evaluations=32.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that receives the results.", metavar="DIR")
    ] = Path("longrope-demo"),
    full: Annotated[
        bool, typer.Option("--full", help="Go to 131072 tokens, 512 times the window; wants a GPU.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin even though a stage does not seem to fit this machine.")
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(help="Only write the texts, for other commands to go on with.", metavar="DIR"),
    ] = None,
) -> None:
    """Extend the embedded model 256 -> 8192: search, fine-tune, search, fine-tune, search, readjust, evaluate, export.

    The text is Python's standard library. The same command goes on where it was interrupted.
    """
    from longrope.cli.outcome import console, print_extend
    from longrope.cli.progress import ConsoleProgress
    from longrope.demo.corpus import python_version, write_texts
    from longrope.demo.recipe import demo_recipe
    from longrope.exceptions import SettingsError
    from longrope.pipeline.run import extend

    if texts is not None:
        console().print(f"texts: {write_texts(texts).training.parent}", markup=False, soft_wrap=True)
        return
    if full:
        import torch

        if not torch.cuda.is_available():
            raise SettingsError("demo --full scores texts of 131072 tokens, which take days on a CPU; run it on a GPU")
    with ConsoleProgress() as progress:
        recipe = demo_recipe(output, changes or (), full)
        progress.note(f"text: the standard library of Python {python_version()}, in {output}")
        report = extend(recipe, output, progress, force)
    print_extend(report)
