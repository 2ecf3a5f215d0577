"""What is seen of a run while it trains: on the terminal, in metrics.jsonl, and through Trainer's integrations.

Trainer hands its logs to TensorBoard and the like before it hands them to callbacks that were added later. So a trainer
has to add the figures itself, in its ``log``:

    def log(self, logs, start_time=None):
        super().log(self.monitor.with_speed(logs), start_time)
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from longrope.files import write_text_atomically
from longrope.finetune.estimate import format_duration
from longrope.sizes import GIB

METRICS_FILE = "metrics.jsonl"
_PLAIN_LINE_SECONDS = 15.0


def speed(
    steps: int,
    seconds: float,
    *,
    tokens: int,
    devices: int,
    model_flops: float | None = None,
    peak: float | None = None,
) -> dict[str, float]:
    """Figures of some steps.

    Args:
        tokens: of a step, over all devices.
        devices: GPUs, or processes on a CPU.
        model_flops: of a step, see :class:`longrope.finetune.flops.TrainingFlops`.
        peak: FLOP/s of a device.

    Returns:
        ``tokens_per_second``, ``tokens_per_second_per_device``, and ``mfu`` where the peak is known: the model FLOPs
        of causal attention, without recomputation, as a share of what the devices could have done.
    """
    rate = steps * tokens / seconds
    figures = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / devices}
    if model_flops is not None and peak is not None:
        figures["mfu"] = steps * model_flops / (seconds * devices * peak)
    return figures


class Monitor(TrainerCallback):
    """Measures, shows and records a run; give it to the trainer as a callback, and see :meth:`with_speed`.

    Only what this process did counts: a run that was resumed starts to measure anew, and its first step, which
    compiles and warms up, is left out.

    Args:
        folder: receives ``metrics.jsonl``; lines of steps after the one that a run is resumed from are cut off.
        tokens: of an optimizer step, over all devices.
        devices: GPUs, or processes on a CPU.
        model_flops: of an optimizer step.
        peak: FLOP/s of a device; no utilisation is shown without.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tokens: int,
        devices: int,
        model_flops: float | None = None,
        peak: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(folder) / METRICS_FILE
        self._speed = partial(speed, tokens=tokens, devices=devices, model_flops=model_flops, peak=peak)
        self._clock = clock
        self._total = 0
        self._step = 0
        # Step and time at the end of the first step of this process, and when figures were last given.
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self._display: _Display | None = None

    def with_speed(self, logs: dict[str, float]) -> dict[str, float]:
        """Logs of training with ``tokens_per_second`` and the like, ``peak_memory_gib`` and ``seconds_left``.

        Speed is that since the figures were last given; the time left follows from the mean of all steps. Other logs
        (of evaluation, of the whole run) are returned as they are.
        """
        if "loss" not in logs:
            return logs
        figures: dict[str, float] = {}
        now = self._clock()
        if self._first is not None and self._last is not None and self._step > self._first[0]:
            figures |= self._speed(self._step - self._last[0], now - self._last[1])
            mean = (now - self._first[1]) / (self._step - self._first[0])
            figures["seconds_left"] = mean * (self._total - self._step)
            self._last = self._step, now
        figures["peak_memory_gib"] = peak_memory() / GIB
        return {**logs, **figures}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._total, self._step = state.max_steps, state.global_step
        self._first = self._last = None
        if state.is_world_process_zero:
            _cut(self._path, state.global_step)
            self._display = _Display(state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step
        if self._first is None:
            _finish()
            self._first = self._last = self._step, self._clock()
        if self._display is not None:
            self._display.advance(self._step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        # JSON has no infinity, and none that is not a number.
        numbers = {name: value if math.isfinite(value) else None for name, value in logs.items()}
        line = {"step": state.global_step, **numbers}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._display is not None and "loss" in logs:
            self._display.show(state.global_step, _status(logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal; nothing happens where that was done already."""
        if self._display is not None:
            self._display.close()
            self._display = None


def peak_memory() -> int:
    """Most bytes that this process has held: of its GPU in tensors, or of main memory where there is no GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Display:
    """A bar on a terminal, a line now and then elsewhere; on standard output, which launchers pass on."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(highlight=False)
        self._total = total
        self._spoken = -_PLAIN_LINE_SECONDS
        self._bars = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bars.add_task("", total=total, completed=done, status="")
        self._bars.start()

    def advance(self, step: int) -> None:
        self._bars.update(self._task, completed=step)

    def show(self, step: int, status: str) -> None:
        self._bars.update(self._task, completed=step, status=status)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._spoken >= _PLAIN_LINE_SECONDS or step == self._total):
            self._spoken = now
            self._console.print(f"step {step} of {self._total}: {status}", markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bars.stop()


def _status(logs: dict[str, float]) -> str:
    """Figures of a step in words."""
    parts = [f"loss {logs['loss']:.4f}"]
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.3g}")
    if "tokens_per_second" in logs:
        each = logs["tokens_per_second_per_device"]
        one = each == logs["tokens_per_second"]
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s" + ("" if one else f" ({each:,.0f} per device)"))
    if "mfu" in logs:
        parts.append(f"causal MFU {logs['mfu']:.1%}")
    if "peak_memory_gib" in logs:
        parts.append(f"peak {logs['peak_memory_gib']:.1f} GiB")
    if "seconds_left" in logs:
        parts.append(f"{format_duration(logs['seconds_left'])} left")
    return ", ".join(parts)


def _finish() -> None:
    """Wait for what a GPU has been given, so that its time counts where it belongs."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cut(path: Path, step: int) -> None:
    """Keep the lines up to ``step`` only: a run goes on from there, and a line that broke off is no line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text_atomically(path, "".join(kept))
