"""The documents of one source, tokenised one at a time, from any place on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from longrope.data.decontamination import Decontaminator
from longrope.data.encoding import Encoded, PieceEncoder
from longrope.data.mixture import Source
from longrope.data.order import shuffled
from longrope.data.records import Block, Place, Record
from longrope.data.templates.template import Surroundings
from longrope.exceptions import DataError

COUNTS = ("documents", "tokens", "too_short", "too_long", "contaminated")


@dataclass(frozen=True)
class Cursor:
    """A place between two records."""

    epoch: int
    place: Place
    row: int
    used: int  # documents of this epoch that were used; none in a whole epoch means that there are none at all


@dataclass(frozen=True, eq=False)
class TokenDocument(Encoded):
    """A document of at least one token, without bookends.

    Attributes:
        name: of its record; of a packed one, of its first record, and how many more there are.
        after: the place behind it.
        passed: records among a packed document's own that were left out, by reason.
    """

    name: str
    epoch: int
    after: Cursor
    passed: Counter[str]


@dataclass(frozen=True, eq=False)
class _Step:
    """What :meth:`SourceReader._walk` finds between two places."""

    before: Cursor
    after: Cursor
    name: str = ""
    found: Encoded | None = None
    reason: str = ""  # why a document was left out; one of COUNTS
    ends_epoch: bool = False


class SourceReader:
    """Hands out the documents of a source, epoch after epoch, without end.

    :meth:`peek` gives the next document, :meth:`advance` passes on to the one after it, and the state is the place
    before the document that is peeked at.

    Args:
        capacity: tokens that a segment has room for; a document that must not be split may have no more.
        seed: decides the order, and what templates draw.

    Attributes:
        counts: documents and tokens used so far, and documents left out, by reason.
    """

    def __init__(
        self,
        source: Source,
        encoder: PieceEncoder,
        decontaminator: Decontaminator | None,
        capacity: int,
        seed: int,
    ) -> None:
        self.source = source
        self.counts = dict.fromkeys(COUNTS, 0)
        self.records = source.records(seed)
        self._encoder, self._decontaminator = encoder, decontaminator
        self._capacity, self._seed = capacity, seed
        self._cursor = Cursor(0, self.records.first(0), 0, 0)
        self._next: TokenDocument | None = None
        self._block: tuple[int, Place, Block, Place | None] | None = None

    @property
    def epoch(self) -> int:
        """0 for the first."""
        return self._cursor.epoch

    def peek(self) -> TokenDocument:
        """The next document.

        Raises:
            DataError: if it cannot be read, or a whole epoch holds none.
        """
        if self._next is None:
            self._next = self._find()
        return self._next

    def advance(self) -> None:
        """Pass on to the document behind the one that :meth:`peek` gives."""
        document = self.peek()
        self.counts["documents"] += 1
        for reason, number in document.passed.items():
            self.counts[reason] += number
        self._cursor, self._next = document.after, None

    def state(self) -> dict[str, Any]:
        """Where the reader stands, as JSON."""
        return {**asdict(self._cursor), **self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where :meth:`state` said."""
        self._cursor = Cursor(int(state["epoch"]), state["place"], int(state["row"]), int(state["used"]))
        self.counts = {name: int(state[name]) for name in COUNTS}
        self._next = self._block = None

    def _find(self) -> TokenDocument:
        steps = self._walk(self._cursor)
        for step in steps:
            if step.found is not None:
                self._cursor = step.before
                return self._pack(step, steps)
            if step.ends_epoch and step.before.used == 0:
                raise self._nothing()
            if step.reason:
                self.counts[step.reason] += 1
        raise AssertionError("a walk has no end")

    def _pack(self, first: _Step, steps: Iterator[_Step]) -> TokenDocument:
        """The document that begins with ``first``, and goes on where its template packs records."""
        assert first.found is not None
        parts, after, passed = [first.found], first.after, Counter[str]()
        template = self.source.template
        if template.packs:
            room = min(getattr(template, "length", 0) or self._capacity, self._capacity) - len(first.found)
            for step in steps:
                if step.ends_epoch or (step.found is not None and len(step.found) > room):
                    break
                after = step.after
                if step.reason:
                    passed[step.reason] += 1
                if step.found is not None:
                    parts.append(step.found)
                    room -= len(step.found)
        return TokenDocument(
            tokens=np.concatenate([part.tokens for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            name=first.name + (f" and {len(parts) - 1} more" if len(parts) > 1 else ""),
            epoch=first.before.epoch,
            after=replace(after, used=first.before.used + 1),
            passed=passed,
        )

    def _walk(self, cursor: Cursor) -> Iterator[_Step]:
        """Everything from ``cursor`` on, record by record."""
        while True:
            block, following = self._load(cursor)
            if cursor.row < len(block):
                after = replace(cursor, row=cursor.row + 1)
                record = block.read(cursor.row)
                if record is None:
                    yield _Step(cursor, after)
                else:
                    found = self._encode(record, block, cursor)
                    if isinstance(found, str):
                        yield _Step(cursor, after, record.name, reason=found)
                    else:
                        yield _Step(cursor, after, record.name, found=found)
                cursor = after
            elif following is not None:
                cursor = replace(cursor, place=following, row=0)
            else:
                epoch = cursor.epoch + 1
                after = Cursor(epoch, self.records.first(epoch), 0, 0)
                yield _Step(cursor, after, ends_epoch=True)
                cursor = after

    def _load(self, cursor: Cursor) -> tuple[Block, Place | None]:
        if self._block is None or self._block[:2] != (cursor.epoch, cursor.place):
            self._block = (cursor.epoch, cursor.place, *self.records.block(cursor.epoch, cursor.place))
        return self._block[2:]

    def _encode(self, record: Record, block: Block, cursor: Cursor) -> Encoded | str:
        """The document that ``record`` makes, or why it is left out (nothing, if it holds no text)."""
        # Not the whole name: what is drawn must not depend on the folder that the data lies in.
        key = (self._seed, self.source.name, cursor.epoch, record.name.rpartition("/")[2])
        pieces = self.source.template.pieces(record, Surroundings(key, lambda: _others(block, cursor.row, key)))
        if not pieces:
            return ""
        shortest, longest = self.source.min_length, self.source.max_length
        if sum(len(piece.content) * 4 + 1 for piece in pieces) < shortest:  # a byte of UTF-8 is a token at least
            return "too_short"
        if self._decontaminator is not None and self._decontaminator.contaminated(self._encoder.text(pieces)):
            return "contaminated"
        encoded = self._encoder.encode(pieces)
        if not len(encoded):
            return ""
        if len(encoded) < shortest:
            return "too_short"
        whole = self.source.template.whole
        if (longest is not None and len(encoded) > longest) or (whole and len(encoded) > self._capacity):
            return "too_long"
        return encoded

    def _nothing(self) -> DataError:
        left_out = [f"{self.counts[name]} {name.replace('_', ' ')}" for name in COUNTS[2:] if self.counts[name]]
        if not left_out:
            return DataError(f"source {self.source.name!r} ({self.source.place}) holds no text")
        bounds = f"min_length {self.source.min_length}, max_length {self.source.max_length}"
        room = f", and {self._capacity} tokens in a segment" if self.source.template.whole else ""
        return DataError(
            f"every document of source {self.source.name!r} ({self.source.place}) is left out: {', '.join(left_out)} "
            f"({bounds}{room}); change the bounds, or take the source out"
        )


def _others(block: Block, row: int, key: tuple[str | int, ...]) -> Iterator[Record]:
    for index in shuffled(len(block), *key, "others").tolist():
        record = block.read(index) if index != row else None
        if record is not None:
            yield record
