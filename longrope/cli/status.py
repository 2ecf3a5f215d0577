"""``longrope status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of `longrope extend`.")],
) -> None:
    """Show the stages of a run: their state, time and results."""
    from longrope.cli.outcome import console, print_status
    from longrope.pipeline.state import RUNNING, is_at_work, open_state

    state = open_state(run)
    print_status(state)
    for name, stage in state.stages.items():
        if stage.state == RUNNING and not is_at_work(run):
            console().print(f"{name} was interrupted; the same `longrope extend` goes on with it", markup=False)
