"""The recipe of ``longrope demo``, on texts that every machine has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longrope.demo.corpus import write_texts
from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.run import TEXTS, refuse_other
from longrope.pipeline.stages import Recipe


def demo_recipe(output: str | Path, overrides: Sequence[str] = (), full: bool = False) -> Recipe:
    """Write the texts into the folder of the run, and read the recipe for them.

    Args:
        overrides: settings in place of the recipe's, ``key=value``.
        full: the one for a GPU, which goes to 131072 tokens.

    Raises:
        InvalidInputError: if an override is wrong, or the folder holds something else; nothing is written then.
    """
    refuse_other(Path(output).resolve())
    texts = write_texts(Path(output).resolve() / TEXTS)
    data = [
        f"data.training={texts.training}",
        f"data.documents.source={texts.search}",
        f"data.evaluation.source={texts.evaluation}",
    ]
    return read_recipe("demo-full" if full else "demo", [*data, *overrides])
