"""Evaluators that the pool tests run in workers: what a task does is written in its sample."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from longrope.exceptions import DataError, FactorsError
from longrope.search.evaluation import BlockScore, Task


class LocalFactorsError(FactorsError):
    """A subclass that the error tree does not know."""


@dataclass(frozen=True)
class ScriptedFactory:
    """Makes scripted evaluators. A file named ``broken`` in ``folder`` makes it fail as the file's text says."""

    folder: Path

    def __call__(self) -> ScriptedEvaluator:
        broken = self.folder / "broken"
        if broken.exists():
            match broken.read_text():
                case "input":
                    raise DataError("the data are gone; give others")
                case "subclass":
                    raise LocalFactorsError("factors of another model; give others")
                case "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                case _:
                    raise RuntimeError("no model here\nsecond line")
        return ScriptedEvaluator(self.folder)


class ScriptedEvaluator:
    """Scores with the lambdas times 2; the sample says what else to do, as ``verb:name``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[TextIO] = []

    def evaluate(self, task: Task) -> BlockScore:
        candidate, sample = task.candidate, task.sample
        verb, _, name = sample.partition(":")
        if verb in ("raise", "raise-once", "die", "die-once"):
            with (self._folder / f"{name}.attempts").open("a") as file:
                file.write("x")
            first = (self._folder / f"{name}.attempts").stat().st_size == 1
            if verb == "die" or (verb == "die-once" and first):
                os.kill(os.getpid(), signal.SIGKILL)
            if verb == "raise" or (verb == "raise-once" and first):
                raise MemoryError("CUDA out of memory\nTried to allocate")
        elif verb in ("hold", "block"):
            # Tells its pid through a FIFO whose reader sees the end when this process is gone.
            self._held.append((self._folder / f"{name}.out").open("w"))
            self._held[-1].write(f"{os.getpid()}\n")
            self._held[-1].flush()
            if verb == "block":
                (self._folder / f"{name}.in").read_text()
        elif verb == "threads":
            import torch

            environment = (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"])
            threads = torch.get_num_threads()
            torch.set_num_threads(threads + 3)  # no evaluation may change the next
            return BlockScore((*map(float, environment), float(threads)), 256, 0.0)
        elif verb == "environment":
            return BlockScore(tuple(float(ord(letter)) for letter in os.environ.get(name, "")), 256, 0.0)
        return BlockScore(tuple(value * 2 for value in candidate.lambdas), 256 * len(candidate.lambdas), 0.5)


class Watched:
    """The test's end of a ``hold:name`` or ``block:name`` task. No method returns before the worker has come so far."""

    def __init__(self, folder: Path, name: str) -> None:
        self._out, self._in = folder / f"{name}.out", folder / f"{name}.in"
        os.mkfifo(self._out)
        os.mkfifo(self._in)

    def begun(self) -> Process:
        """The process that works on the task."""
        out = self._out.open()
        return Process(int(out.readline()), out)

    def go_on(self) -> None:
        """Let the task end."""
        self._in.write_text("go")


@dataclass(frozen=True)
class Process:
    pid: int
    out: TextIO

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        assert self.out.read() == ""
        self.out.close()
