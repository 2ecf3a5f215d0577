"""``longrope status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of `longrope extend`.")],
) -> None:
    """Show the stages of a run: their state, time and results."""
    from longrope.cli.outcome import print_status
    from longrope.pipeline.state import open_state

    print_status(open_state(run))
