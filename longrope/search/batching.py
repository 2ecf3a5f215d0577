"""How many candidates are scored in one forward pass: settled once in the life of a journal.

Short samples and small models leave a GPU half idle, which several candidates on one sample can fill. How many a pass
has decides the last bits of a score, so the number stands in the journal before the first score does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from longrope.data.samples import Sample
from longrope.runs.journal import Journal
from longrope.workers.pool import EvaluationPool, Failure

WORTH = 0.9
"""Twice the rows must bring the seconds per candidate down to this share."""
LONGEST_MEASURED = 65536
"""Tokens above which one sample fills any device, and measuring would cost minutes."""
_REPEATS = 3
_LONG_SECONDS = 1.0  # a pass that takes longer varies little


@dataclass(frozen=True)
class BatchProbe:
    """A task: time passes of more and more rows, up to ``most``, over a sample; see :func:`time_batches`."""

    sample: str
    most: int

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"measuring batches, sample {self.sample[:8]}"


def time_batches(
    run: Callable[[int], object], most: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """Seconds per candidate of passes with 1, 2, 4, ... rows, up to the first that is not worth it or does not fit.

    Args:
        run: makes a pass of so many rows and waits for its end.
        most: rows at most.
        clock: seconds.

    Raises:
        torch.OutOfMemoryError: if not even one row fits.
    """
    import torch

    run(1)  # what is loaded at the first use is not counted
    found: list[float] = []
    rows = 1
    while rows <= most:
        try:
            found.append(_fastest(run, rows, clock) / rows)
        except (torch.OutOfMemoryError, MemoryError):
            if not found:
                raise
            break
        if len(found) > 1 and found[-1] > WORTH * found[-2]:
            break
        rows *= 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the largest pass shall not stay reserved
    return tuple(found)


def worthwhile_rows(seconds: Sequence[float]) -> int:
    """Rows up to which doubling them was worth it, given seconds per candidate with 1, 2, 4, ... rows."""
    rows = 1
    for before, after in pairwise(seconds):
        if after > WORTH * before:
            break
        rows *= 2
    return rows


def settle_batch(
    journal: Journal,
    pool: EvaluationPool[Any, Any],
    given: int | None,
    measured_on: Sample | None,
    together: int,
    tell: Callable[[str], None],
) -> int:
    """Candidates in one forward pass of the run in ``journal``: the recorded, given or measured number, in this order.

    Args:
        given: what the user asks for, if anything.
        measured_on: the sample to measure with; None where one row fills the device for sure.
        together: candidates that are scored on one sample before anything else is decided; all workers shall have a
            part of them.
        tell: is told in one line what the user would not expect.
    """
    recorded = _recorded(journal.events)
    if recorded is not None:
        if given not in (None, recorded):
            tell(f"the run was begun with {recorded} candidate(s) in one forward pass and goes on so, not with {given}")
        return recorded
    if given is not None:
        journal.append({"kind": "batch", "size": given})
        return given
    if measured_on is None or len(measured_on.tokens) > LONGEST_MEASURED:
        return 1
    [(_, result)] = pool.run([BatchProbe(measured_on.digest, -(-together // pool.workers))])
    if isinstance(result, Failure):
        tell(f"batches could not be measured ({result.reason}), so each candidate is scored alone")
    seconds: tuple[float, ...] = () if isinstance(result, Failure) else result
    size = worthwhile_rows(seconds)
    journal.append({"kind": "batch", "size": size, "seconds": [round(each, 6) for each in seconds]})
    if size > 1:
        faster = seconds[0] / seconds[size.bit_length() - 1]
        tell(f"{size} candidates in one forward pass, {faster:.1f} times as fast as one by one")
    return size


def _recorded(events: Sequence[Mapping[str, Any]]) -> int | None:
    """What a journal says; where it has scores and does not say, each candidate was scored alone."""
    for event in events:
        if event["kind"] == "batch":
            return int(event["size"])
    return 1 if any(event["kind"] == "evaluation" for event in events) else None


def _fastest(run: Callable[[int], object], rows: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a few calls: what else the machine does only ever adds to them."""
    taken: list[float] = []
    while len(taken) < _REPEATS and (not taken or taken[-1] < _LONG_SECONDS):
        started = clock()
        run(rows)
        taken.append(clock() - started)
    return min(taken)
