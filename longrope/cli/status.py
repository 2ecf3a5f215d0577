"""``longrope status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of `longrope extend`.")],
) -> None:
    """Show the stages of a run: their state, time and results."""
    import time

    from longrope.cli.outcome import console, print_status
    from longrope.pipeline.state import RUNNING, is_at_work, last_sign, open_state

    state = open_state(run)
    at_work = is_at_work(run)
    running = {name: stage for name, stage in state.stages.items() if stage.state == RUNNING}
    for name, stage in running.items():
        until = time.time() if at_work else last_sign(run / name)
        if stage.started is not None and until is not None:
            stage.seconds += max(until - stage.started, 0.0)
    print_status(state)
    if not at_work:
        for name in running:
            console().print(f"{name} was interrupted; the same `longrope extend` goes on with it", markup=False)
