"""What an import gives: the factors or the schedule, where they come from, and what the reader should know."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longrope import __version__
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window


@dataclass(frozen=True)
class Imported:
    """What was read.

    Attributes:
        factors: factors where one set holds, a schedule where the source has two lists.
        description: what the source is, in words.
        notes: what was decided where the source leaves a choice, a line each.
    """

    factors: RopeFactors | FactorSchedule
    description: str
    notes: tuple[str, ...] = ()

    @property
    def windows(self) -> tuple[Window, ...]:
        """The factors with the lengths they serve, whether there is one set or several."""
        if isinstance(self.factors, FactorSchedule):
            return self.factors.windows
        return (Window(self.factors.target_length, self.factors),)


def finish(
    factors: RopeFactors | FactorSchedule, path: Path, source: str, description: str, notes: tuple[str, ...] = ()
) -> Imported:
    """Add the provenance of a file that was read, and warn of lambdas that fall.

    Args:
        path: the file, whose digest is kept.
        source: what the user calls it.
    """
    provenance = {
        "method": "imported",
        "source": source,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "form": description,
        "notes": list(notes),
        "versions": {"longrope": __version__},
    }
    if isinstance(factors, RopeFactors):
        factors = _with_provenance(factors, provenance, source)
    else:
        factors = FactorSchedule(
            tuple(
                replace(
                    window,
                    factors=_with_provenance(window.factors, provenance, f"{source}: window {window.max_length}"),
                )
                for window in factors.windows
            )
        )
    return Imported(factors, description, notes)


def _with_provenance(factors: RopeFactors, provenance: Mapping[str, Any], source: str) -> RopeFactors:
    falls = [index for index in range(1, len(factors.lambdas)) if factors.lambdas[index] < factors.lambdas[index - 1]]
    if falls:
        warnings.warn(
            f"{source}: the lambdas are not monotone (lambda {falls[0]} is the first below the one before it)",
            stacklevel=3,
        )
    return factors.replace(provenance=provenance)
