"""RopePolicy: which factors a sequence of a given full length uses.

The window of a sequence is decided once, from its full length, and pinned for the whole sequence; a policy never
sees the positions of a chunk or a shard.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.exceptions import FactorsError
from longrope.files import write_text_atomically
from longrope.lengths import format_length
from longrope.rope.factors import SCHEMA_VERSION, RopeFactors, check_schema


class RopePolicy(ABC):
    """Chooses the factors of a sequence from its full length."""

    @abstractmethod
    def factors_for(self, length: int) -> RopeFactors:
        """The factors of a sequence of ``length`` tokens in all."""

    @property
    @abstractmethod
    def reference(self) -> RopeFactors:
        """Factors that tell rope_theta, rotary_dim and original_length, which are the same at every length."""


@dataclass(frozen=True)
class FixedFactors(RopePolicy):
    """The same factors at every length."""

    factors: RopeFactors

    def factors_for(self, length: int) -> RopeFactors:
        return self.factors

    @property
    def reference(self) -> RopeFactors:
        return self.factors


@dataclass(frozen=True)
class Window:
    """Sequences of at most ``max_length`` tokens use ``factors``."""

    max_length: int
    factors: RopeFactors


@dataclass(frozen=True)
class FactorSchedule(RopePolicy):
    """Windows in order of length; a sequence uses the first that holds it, or the last if none does.

    The whole extended model in one value and one JSON file. The final model of the LongRoPE paper has three
    windows (4k, 8k, 2048k; arXiv 2402.13753, section 3.4).

    Raises:
        FactorsError: if there is no window, lengths do not rise, or the windows belong to different models.
    """

    windows: tuple[Window, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        if not self.windows:
            raise FactorsError("a schedule needs at least one window")
        first = self.windows[0].factors
        for before, after in zip(self.windows, self.windows[1:], strict=False):
            if after.max_length <= before.max_length:
                raise FactorsError(
                    f"window {after.max_length} follows {before.max_length}; windows must rise in length"
                )
        for window in self.windows:
            if window.max_length < 1:
                raise FactorsError(f"window {window.max_length} must be at least 1 token")
            window.factors.check_fits(first.rope_theta, first.rotary_dim)
            if window.factors.original_length != first.original_length:
                raise FactorsError(
                    f"windows disagree on original_length: {first.original_length} and {window.factors.original_length}"
                )

    def factors_for(self, length: int) -> RopeFactors:
        return self.window_for(length).factors

    def window_for(self, length: int) -> Window:
        """The window that a sequence of ``length`` tokens falls into."""
        return next((window for window in self.windows if length <= window.max_length), self.windows[-1])

    @property
    def reference(self) -> RopeFactors:
        return self.windows[-1].factors

    def with_window(self, factors: RopeFactors, max_length: int | None = None) -> FactorSchedule:
        """This schedule with a window added, or the one of the same length replaced.

        Args:
            factors: what the window uses.
            max_length: tokens the window holds; the factors' target length when not given.
        """
        added = Window(factors.target_length if max_length is None else max_length, factors)
        kept = [window for window in self.windows if window.max_length != added.max_length]
        return FactorSchedule(tuple(sorted([*kept, added], key=lambda window: window.max_length)))

    def describe(self) -> str:
        """The windows in words, for example ``256, 2k``."""
        return ", ".join(format_length(window.max_length) for window in self.windows)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with ``schema_version`` and ``kind``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "schedule",
            "windows": [
                {"max_length": window.max_length, "factors": window.factors.to_dict()} for window in self.windows
            ],
        }

    @classmethod
    def from_dict(cls, data: Any, source: str = "schedule") -> FactorSchedule:
        """Read the JSON form; ``source`` names it in errors."""
        check_schema(data, "schedule", source)
        entries = data.get("windows")
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise FactorsError(f"{source}: windows must be a list")
        windows = []
        for index, entry in enumerate(entries):
            where = f"{source}: window {index}"
            if not isinstance(entry, Mapping) or type(entry.get("max_length")) is not int:
                raise FactorsError(f"{where} needs a whole max_length and factors")
            windows.append(Window(entry["max_length"], RopeFactors.from_dict(entry.get("factors"), where)))
        try:
            return cls(tuple(windows))
        except FactorsError as error:
            raise FactorsError(f"{source}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the JSON form to ``path``; a file already there is replaced whole or not at all."""
        write_text_atomically(path, json.dumps(self.to_dict(), indent=2) + "\n")


def load_factors(path: str | Path) -> RopeFactors | FactorSchedule:
    """Read a factors or schedule file.

    Raises:
        FactorsError: if the file is missing, is not JSON, or does not hold valid factors.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FactorsError(f"factors file {path} does not exist; give the factors.json of a search") from None
    except OSError as error:
        raise FactorsError(f"factors file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise FactorsError(f"factors file {path} is not valid JSON: {error}") from None
    if isinstance(data, Mapping) and data.get("kind") == "schedule":
        return FactorSchedule.from_dict(data, str(path))
    return RopeFactors.from_dict(data, str(path))
