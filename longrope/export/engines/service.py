"""What an engine does with a model, and how that compares with what was measured: the values all engines share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

_TOLERANCE = 1e-5  # of frequencies and attention factors in float32, relative


@dataclass(frozen=True)
class Applied:
    """What an engine applies to one sequence.

    Attributes:
        name: "short", "long", or what it takes instead.
        lambdas: over plain ``rope_theta`` of the model, as in our factors; None where no factors are applied that
            could be compared.
        attention_factor: what multiplies cos and sin; None where it is not known.
        n_hat: start tokens that keep their plain angle.
    """

    name: str
    lambdas: tuple[float, ...] | None
    attention_factor: float | None
    n_hat: int = 0

    def turns_like(self, factors: RopeFactors) -> bool:
        """Whether every position turns as under ``factors``, whatever the attention factors."""
        if self.lambdas is None or not _close(self.lambdas, factors.lambdas):
            return False
        return self.n_hat == factors.n_hat or all(value == 1 for value in factors.lambdas)

    def scales_like(self, factors: RopeFactors) -> bool:
        """Whether the attention factor is that of ``factors``."""
        return self.attention_factor is not None and _close((self.attention_factor,), (factors.attention_factor,))


NOTHING = Applied("none", None, None)


@dataclass(frozen=True)
class Service:
    """What one engine does with one model.

    Attributes:
        applied: tells what a sequence of so many tokens gets, computed alone and at once.
        longest: tokens of the longest sequence that the engine takes as it is to be started.
        crossing: what happens where a generated sequence grows from one list into the other.
        serve_with: commands and flags, a line each.
        boundaries: lengths at which ``applied`` may change, each the last of its kind.
        ignored: settings of the model that the engine does not read, a line each.
        notes: what else a user should know, a line each.
        mismatches: what differs from the measurement beside lists and attention factors, a line each.
        has_n_hat: whether the engine knows n_hat and any number of windows.
    """

    applied: Callable[[int], Applied]
    longest: int
    crossing: str
    serve_with: tuple[str, ...]
    boundaries: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mismatches: tuple[str, ...] = ()
    has_n_hat: bool = False


@dataclass(frozen=True)
class Row:
    """Lengths between which neither the schedule nor the engine changes.

    Attributes:
        first, last: tokens of the shortest and the longest sequence.
        window: the window of the schedule that holds them.
        used: what the engine applies.
    """

    first: int
    last: int
    window: Window
    used: Applied

    @property
    def same_factors(self) -> bool:
        return self.used.turns_like(self.window.factors)

    @property
    def same_attention_factor(self) -> bool:
        return self.used.scales_like(self.window.factors)

    @property
    def same(self) -> bool:
        return self.same_factors and self.same_attention_factor

    def to_dict(self) -> dict[str, Any]:
        factors = self.window.factors
        return {
            "first": self.first,
            "last": self.last,
            "window": self.window.max_length,
            "list": self.used.name,
            "n_hat": {"expected": factors.n_hat, "used": self.used.n_hat},
            "attention_factor": {"expected": factors.attention_factor, "used": self.used.attention_factor},
            "same_factors": self.same_factors,
            "same_attention_factor": self.same_attention_factor,
        }


@dataclass(frozen=True)
class Report:
    """What an engine computes with a model, beside what was measured.

    Attributes:
        model: the folder or file.
        engine: name and version.
        reference: where the schedule that was measured comes from.
        rows: every length up to the longest, in order.
    """

    model: str
    engine: str
    reference: str
    rows: tuple[Row, ...]
    service: Service
    ignored: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether the engine computes what was measured, at every length."""
        return not self.service.mismatches and all(row.same for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "model": self.model,
            "engine": self.engine,
            "reference": self.reference,
            "same": self.same,
            "rows": [row.to_dict() for row in self.rows],
            "crossing": self.service.crossing,
            "ignored": list(self.ignored),
            "mismatches": list(self.service.mismatches),
            "notes": list(self.service.notes),
            "serve_with": list(self.service.serve_with),
        }


def compare(model: str, engine: str, reference: str, schedule: FactorSchedule, service: Service) -> Report:
    """Hold a service against the schedule, at every length that the engine takes."""
    rows = tuple(_rows(schedule, service))
    return Report(model, engine, reference, rows, service, (*_not_served(schedule, rows, service), *service.ignored))


def longest_asked(schedule: FactorSchedule, max_length: int | None) -> int:
    """The longest sequence to serve: what was asked for, or the whole window.

    Raises:
        SettingsError: if more was asked for than the model has.
    """
    full = schedule.windows[-1].max_length
    if max_length is not None and max_length > full:
        raise SettingsError(f"max length {format_length(max_length)} is above the model's {format_length(full)}")
    return max_length or full


def _rows(schedule: FactorSchedule, service: Service) -> Iterator[Row]:
    lengths = {*(window.max_length for window in schedule.windows), *service.boundaries}
    edges = sorted({0, service.longest, *(length for length in lengths if 0 < length < service.longest)})
    row: Row | None = None
    for before, last in pairwise(edges):
        window, used = schedule.window_for(last), service.applied(last)
        if row is not None and row.window == window and row.used == used:
            row = replace(row, last=last)
            continue
        if row is not None:
            yield row
        row = Row(before + 1, last, window, used)
    if row is not None:
        yield row


def _not_served(schedule: FactorSchedule, rows: tuple[Row, ...], service: Service) -> Iterator[str]:
    """Windows and start tokens of the schedule that the engine leaves out."""
    if all(row.used == NOTHING for row in rows):
        return  # which the mismatches say
    for window in schedule.windows:
        own = [row for row in rows if row.window == window]
        length = format_length(window.max_length)
        if own and not service.has_n_hat and window.factors.n_hat and not all(row.same_factors for row in own):
            yield f"n_hat {window.factors.n_hat} of window {length}: start tokens are rescaled like all others"
        plain = window.factors.replace(n_hat=0)
        if own and not any(row.used.turns_like(plain) for row in own):
            yield f"the factors of window {length}"


def _close(values: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return len(values) == len(others) and all(
        math.isclose(value, other, rel_tol=_TOLERANCE) for value, other in zip(values, others, strict=True)
    )
