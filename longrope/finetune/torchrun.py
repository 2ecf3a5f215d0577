"""Processes of one machine, by torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from longrope.exceptions import RunFailedError
from longrope.finetune.failure import raise_failure
from longrope.workers.room import usable_cpus

LOGS = "logs"


def run_by_torchrun(folder: Path, device: str, processes: int, inherited: Sequence[int] = ()) -> None:
    """Train the run in ``folder`` by as many processes of this machine.

    What the processes complain of goes to files in ``logs``; what they say is passed on.

    Args:
        inherited: file descriptors that torchrun keeps open, also when this process is killed.

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
        status = run_to_end(command, environment, complaints, inherited)
    if status:
        raise_failure(folder)
        raise RunFailedError(
            f"the training processes stopped (torchrun exited with {status}); see {logs}, and go on by --resume"
        )


def run_to_end(
    command: Sequence[str], environment: Mapping[str, str], complaints: IO[str], inherited: Sequence[int] = ()
) -> int:
    """The exit status of a command that does not outlive this process when that is interrupted or terminated.

    torchrun ends its workers when it is asked to end itself; killed, it would leave them waiting for each other.
    """
    with (
        _exit_when_terminated(),
        subprocess.Popen(command, env=environment, stderr=complaints, pass_fds=inherited) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


@contextmanager
def _exit_when_terminated() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone is given signals
        yield
        return

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
