"""A process of a run that is killed, with all others, right after a checkpoint, or between two."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from longrope.finetune import worker
from longrope.finetune.checkpoints import newest_checkpoint
from longrope.finetune.run_record import CHECKPOINTS, RunRecord


def kill_at(step: int) -> None:
    """Kill this process by SIGKILL when training has done ``step`` steps."""

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    worker._Sealing.on_step_end = on_step_end


def work_once(config: dict[str, Any]) -> None:
    """A worker of Ray Train that is killed in its first attempt, and goes on in the next."""
    folder = Path(config["folder"])
    if newest_checkpoint(folder / CHECKPOINTS, RunRecord.read(folder).run) is None:
        kill_at(5)
    worker.train(folder, config["device"])


if __name__ == "__main__":
    kill_at(int(sys.argv[3]))
    worker.train(sys.argv[1], sys.argv[2])
