"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from longrope.runs.progress import Progress

PLAIN_LINE_SECONDS = 15.0


class ConsoleProgress(Progress):
    """Draws on standard error, so that standard output carries results only."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = None if not self._console.is_terminal else self._bars.add_task("", visible=False, status="")
        self._phase, self._status = "", ""
        self._total: int | None = None
        self._done, self._started, self._spoken = 0, 0.0, 0.0

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)

    def begin(self, description: str, total: int | None) -> None:
        self._phase, self._status, self._total, self._done = description, "", total, 0
        self._started = self._spoken = time.monotonic()
        if self._task is not None:
            self._bars.reset(self._task, total=total, description=description, visible=True, status="")

    def advance(self) -> None:
        self._done += 1
        if self._task is not None:
            self._bars.advance(self._task)
        elif self._phase and time.monotonic() - self._spoken >= PLAIN_LINE_SECONDS:
            self._speak()

    def describe(self, status: str) -> None:
        self._status = status
        if self._task is not None:
            self._bars.update(self._task, status=status)

    def end(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, visible=False)
        else:
            self._speak()
        self._phase = ""

    def _speak(self) -> None:
        self._spoken = time.monotonic()
        of = f" of {self._total}" if self._total else ""
        status = f", {self._status}" if self._status else ""
        seconds = self._spoken - self._started
        self.note(f"{self._phase}: {self._done}{of} evaluations in {seconds:.0f} s{status}")
