"""What an evaluation consists of: items, which a suite knows how to measure and to sum up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from longrope.rope.policy import RopePolicy


@dataclass(frozen=True)
class Item:
    """The smallest thing that is measured.

    Attributes:
        key: names it among the items of its suite, and from run to run.
        length: tokens of its text; the most it may have where the data decide.
    """

    key: str
    length: int


@dataclass(frozen=True)
class Task:
    """An item under one method."""

    method: str
    item: str

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"{self.method}, {self.item}"


class Suite(ABC):
    """Items of one kind, with all that they need: workers get a copy of it.

    Attributes:
        name: on the command line.
        items: in the order in which they are measured.
    """

    name: str
    items: Sequence[Item]

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides the result, as JSON; a resumed run must have the same."""

    @abstractmethod
    def measure(self, model: Any, tokenizer: Any, policy: RopePolicy, item: str) -> dict[str, Any]:
        """Measure the item of this key, on a model without a policy attached; numbers and text, as JSON.

        A ``length`` among these is the item's own, where the data decide.
        """

    @abstractmethod
    def table(self, records: pd.DataFrame) -> pd.DataFrame:
        """Sum up what was measured.

        Args:
            records: a row an item and method, with columns ``method``, ``item``, ``length`` and those of ``measure``.

        Returns:
            A row a method and whatever the suite compares (such as lengths), methods in the order of ``records``.
        """


def by_key(items: Sequence[Item]) -> Mapping[str, Item]:
    """Items by their keys, which differ."""
    found = {item.key: item for item in items}
    assert len(found) == len(items), "two items have one key"
    return found
