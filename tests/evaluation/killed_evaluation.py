"""An evaluation that is killed, whole, when so many items are measured: MODEL OUTPUT ITEMS."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

from longrope.evaluation.open_passkey import open_passkey
from longrope.evaluation.run import evaluate
from longrope.evaluation.settings import EvaluationSettings, PasskeySettings
from longrope.runs.progress import Progress
from longrope.workers.settings import ExecutionSettings


class Killing(Progress):
    """Kills this process by SIGKILL after ``left`` items."""

    def __init__(self, left: int) -> None:
        self.left = left

    def advance(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def run(model: str, output: str, progress: Progress, resume: bool = False) -> None:
    settings = EvaluationSettings(
        model=model, output=output, lengths=(200, 250), execution=ExecutionSettings(workers=1), resume=resume
    )
    evaluate(settings, partial(open_passkey, PasskeySettings(trials=4), settings.lengths, 0), progress)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Killing(int(sys.argv[3])))
