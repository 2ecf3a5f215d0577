"""A launcher that is ended ends what it started; whole runs are in test_distributed_runs.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ENVIRONMENT

from longrope.exceptions import RunExistsError
from longrope.runs.locks import FolderLock

_LAUNCHED = """
import signal, sys

def end(number, frame):
    open(sys.argv[1], "w").write("ended")
    sys.exit()

signal.signal(signal.SIGTERM, end)
print("trains", flush=True)
while True:
    signal.pause()
"""
_LAUNCHER = """
import os, signal, sys
from longrope.finetune.torchrun import run_to_end

signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run behind a shell's &
run_to_end([sys.executable, "-c", sys.argv[1], sys.argv[2]], os.environ, sys.stderr)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_ended_ends_its_processes_and_waits_for_them(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LAUNCHER, _LAUNCHED, str(tmp_path / "ended")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "trains\n"
        process.send_signal(number)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert (tmp_path / "ended").read_text() == "ended"


_KILLED_LAUNCHER = """
import os, sys
from pathlib import Path
from longrope.finetune.torchrun import run_to_end
from longrope.runs.locks import FolderLock

lock = FolderLock(Path(sys.argv[2]))
lock.acquire()
run_to_end([sys.executable, "-c", sys.argv[1]], os.environ, sys.stderr, lock.descriptors)
"""
_SURVIVOR = """
import os, signal
print(os.getpid(), flush=True)
signal.pause()
"""


def test_a_run_stays_locked_by_the_processes_of_a_launcher_that_was_killed(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "lock")
    command = [sys.executable, "-c", _KILLED_LAUNCHER, _SURVIVOR, str(tmp_path / "lock")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        survivor = int(process.stdout.readline())
        try:
            process.kill()
            process.wait(timeout=60)
            with pytest.raises(RunExistsError, match="is being written by another process"):
                lock.acquire()
        finally:
            os.kill(survivor, signal.SIGKILL)
        process.stdout.read()  # ends when nobody can write to it any more
    lock.acquire()
    lock.release()
