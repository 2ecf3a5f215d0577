"""Processes of one machine, by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from longrope.exceptions import RunFailedError
from longrope.finetune.failure import raise_failure
from longrope.search.room import usable_cpus

LOGS = "logs"


def run_by_torchrun(folder: Path, device: str, processes: int) -> None:
    """Train the run in ``folder`` by as many processes of this machine.

    What the processes complain of goes to files in ``logs``; what they say is passed on.

    Raises:
        LongRopeError: what stopped it.
    """
    logs = folder / LOGS
    logs.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--log-dir", str(logs), "--redirects=2", "--module", "longrope.finetune.start", str(folder), device]
    environment = {"OMP_NUM_THREADS": str(max(usable_cpus() // processes, 1)), **os.environ}
    if device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    with (logs / "torchrun.log").open("w") as complaints:
        status = subprocess.run(command, env=environment, stderr=complaints).returncode
    if status:
        raise_failure(folder)
        raise RunFailedError(
            f"the training processes stopped (torchrun exited with {status}); see {logs}, and go on by --resume"
        )
