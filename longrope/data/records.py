"""The records of a source, in an order of their own for every epoch, readable from any place on.

A source is read block by block. A place (plain JSON) says which block comes next, so that a stream that stopped
anywhere opens the same block again and goes on, without reading what went before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BLOCK = 256
"""Records in a block, where the kind of file does not decide it."""

Place = Any
"""Where a block begins, as JSON."""


@dataclass(frozen=True)
class Record:
    """What a line, a row or a text file holds, and a name by which a person finds it."""

    name: str
    fields: Mapping[str, Any]


class Block(ABC):
    """Records that are at hand together, in the order in which they are used."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Record | None:
        """The record at ``index``; None where a line is blank."""


class LoadedBlock(Block):
    """A block that is in memory."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Record:
        return self._records[index]


class Records(ABC):
    """The records of one source."""

    @property
    @abstractmethod
    def identity(self) -> Any:
        """What tells this source from another one, as JSON: a state belongs to one identity."""

    @abstractmethod
    def first(self, epoch: int) -> Place:
        """The place of the first block of ``epoch``."""

    @abstractmethod
    def block(self, epoch: int, place: Place) -> tuple[Block, Place | None]:
        """The block at ``place``, and the place of the next one; None where the epoch ends.

        Raises:
            DataError: if it cannot be read.
        """
