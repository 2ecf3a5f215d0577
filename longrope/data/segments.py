"""The training segments: documents packed to exactly the length asked for, in one order, which any process can resume.

Every segment begins as a text does for the model in use (BOS, where the tokenizer puts it there) and ends with EOS;
so does every document within. LongRoPE (arXiv 2402.13753, section 4.2) trains on "128k segments bookended with BOS
and EOS"; the loss does not count on BOS, nor on an EOS that ends a segment in the middle of a document, which would
teach a model to stop anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.data.decontamination import Decontaminator
from longrope.data.encoding import PieceEncoder
from longrope.data.mixture import Mixture
from longrope.data.reader import COUNTS, SourceReader
from longrope.data.templates.tokenized import Tokenized
from longrope.data.tokens import TextEncoder, Tokens
from longrope.exceptions import SettingsError

IGNORED = -100
"""The label of a token on which no loss counts, as in transformers."""


@dataclass(frozen=True)
class Span:
    """Where a part of a document lies in a segment, bookends not included.

    Attributes:
        source: name of the source.
        document: name of the document.
        epoch: of the source, 0 for the first.
        start: first position in the segment.
        stop: position behind the last.
        offset: tokens of the document that came before.
        ends: whether the document ends here.
    """

    source: str
    document: str
    epoch: int
    start: int
    stop: int
    offset: int
    ends: bool


@dataclass(frozen=True, eq=False)
class Segment:
    """A training sequence.

    Attributes:
        tokens: (L,) int32.
        labels: (L,) int32, the tokens themselves, or -100 where no loss counts. Not shifted.
        spans: the documents in it.
    """

    tokens: Tokens
    labels: npt.NDArray[np.int32]
    spans: tuple[Span, ...]


class SegmentStream(Iterator[Segment]):
    """An endless stream of segments in one order, whatever the number of processes.

    The next document comes from the source that lacks most tokens of its share, so the shares are exact to within a
    document. Long documents go on in the next segment. What a template makes is never split: where it does
    not fit into what is left, the next source that fits has its turn, and the rest is filled with EOS that do
    not count only if none does. Nothing else is dropped, but by the bounds on lengths and by decontamination.

    Args:
        mixture: what to read. Files are indexed here.
        tokenizer: a Hugging Face tokenizer.
        length: tokens of a segment, bookends included, and of the longest that is ever asked for.
        seed: decides the order of the documents, anew for each epoch of each source.

    Raises:
        DataError: here or while iterating, if data cannot be read or a source holds no document.
        SettingsError: if a segment has no room for a token, or the tokenizer does not fit.
    """

    def __init__(self, mixture: Mixture, tokenizer: Any, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._front, self._back = _bookends(mixture, tokenizer)
        capacity = self._room(length)
        _check_vocabulary(mixture, tokenizer)
        encoder = PieceEncoder(tokenizer)
        decontaminator = Decontaminator(mixture.decontaminate, mixture.ngram) if mixture.decontaminate else None
        sources = [source for source in mixture.sources if source.weight > 0]
        self._readers = [SourceReader(source, encoder, decontaminator, capacity, seed) for source in sources]
        total = sum(source.weight for source in sources)
        self._shares = [source.weight / total for source in sources]
        self._open: tuple[SourceReader, int] | None = None  # the document that goes on, and its tokens used so far
        self._yielded = 0
        parts = [[reader.source.identity, reader.records.identity] for reader in self._readers]
        known = None if decontaminator is None else decontaminator.identity
        self._identity = {
            "mixture": _digest([parts, mixture.bos, mixture.eos, known]),
            "tokenizer": _digest([_tokenizer_identity(tokenizer), self._front, self._back]),
            "length": length,
            "seed": seed,
        }

    def __iter__(self) -> SegmentStream:
        return self

    def __next__(self) -> Segment:
        return self.take(self.length)

    def take(self, length: int) -> Segment:
        """The next segment, of ``length`` tokens.

        What a template makes and is too long for a shorter segment waits for a longer one.

        Raises:
            SettingsError: if it has no room for a token.
        """
        self._room(length)
        if self._yielded == 0:  # a source that holds nothing shows at once, not when its turn comes
            for reader in self._readers:
                reader.peek()
        tokens = np.empty(length, np.int32)
        labels = np.full(length, IGNORED, np.int32)
        spans: list[Span] = []
        position = 0
        while True:
            room = length - position - len(self._front) - len(self._back)
            taken = self._take(room) if room > 0 else None
            if taken is None:
                break
            reader, offset = taken
            document = reader.peek()
            part = slice(offset, min(offset + room, len(document)))
            ends = part.stop == len(document)
            tokens[position : position + len(self._front)] = self._front
            start = position + len(self._front)
            position = start + part.stop - part.start
            tokens[start:position] = document.tokens[part]
            labels[start:position] = np.where(document.counts[part], document.tokens[part], IGNORED)
            spans.append(Span(reader.source.name, document.name, document.epoch, start, position, part.start, ends))
            tokens[position : position + len(self._back)] = self._back
            if ends and document.counts[-1]:
                labels[position : position + len(self._back)] = self._back
            position += len(self._back)
            reader.counts["tokens"] += part.stop - part.start
            self._open = None if ends else (reader, part.stop)
            if ends:
                reader.advance()
        tokens[position:] = (self._back or self._front or [0])[-1]
        self._yielded += 1
        return Segment(tokens, labels, tuple(spans))

    @property
    def epochs(self) -> dict[str, int]:
        """The epoch that each source is in, 0 for the first."""
        return {reader.source.name: reader.epoch for reader in self._readers}

    def state_dict(self) -> dict[str, Any]:
        """Exactly where the stream stands after the segments it has yielded, as JSON of a few hundred bytes a source.

        ``sources`` holds for each source its epoch, the documents and tokens used, and the documents left out
        (``too_short``, ``too_long``, ``contaminated``) so far.
        """
        on = None if self._open is None else {"source": self._open[0].source.name, "offset": self._open[1]}
        sources = {reader.source.name: reader.state() for reader in self._readers}
        return {**self._identity, "segments": self._yielded, "open": on, "sources": sources}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the segment after those that ``state`` was taken after.

        Nothing that was used is tokenised again, but the document that goes on.

        Raises:
            SettingsError: if ``state`` is of another mixture, tokenizer, length or seed, or no state at all.
        """
        for name, own in self._identity.items():
            if not isinstance(state, dict) or name not in state:
                raise SettingsError("this is no state of a segment stream; resume from a checkpoint of this run")
            if state[name] != own:
                detail = f" ({state[name]}, now {own})" if name in ("length", "seed") else ""
                raise SettingsError(
                    f"the data of the checkpoint was read with another {name}{detail}; resume with the same data, "
                    "tokenizer, length and seed, or start a new run"
                )
        readers = {reader.source.name: reader for reader in self._readers}
        try:
            for name, reader in readers.items():
                reader.restore(state["sources"][name])
            on = state["open"]
            self._open = None if on is None else (readers[on["source"]], int(on["offset"]))
            self._yielded = int(state["segments"])
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError("the state of the data is damaged; resume from an earlier checkpoint") from error

    def _room(self, length: int) -> int:
        """Tokens of documents in a segment."""
        room = length - len(self._front) - len(self._back)
        if room < 1:
            raise SettingsError(f"a segment of {length} tokens has no room beside its BOS and EOS; give a longer one")
        return room

    def _take(self, room: int) -> tuple[SourceReader, int] | None:
        """Whose next document has its turn, and how much of it was used; None if none fits into ``room``."""
        if self._open is not None:
            return self._open
        total = sum(reader.counts["tokens"] for reader in self._readers)
        lacks = [
            share * total - reader.counts["tokens"] for share, reader in zip(self._shares, self._readers, strict=True)
        ]
        # The first of equals: those with the larger share, then those named first.
        for index in sorted(range(len(lacks)), key=lambda index: (-lacks[index], -self._shares[index], index)):
            reader = self._readers[index]
            if not reader.source.template.whole or len(reader.peek()) <= room:
                return reader, 0
        return None


def usage(state: dict[str, Any]) -> list[str]:
    """A line for people on each source of a state: what was used of it, and what was left out."""
    total = sum(source["tokens"] for source in state["sources"].values()) or 1
    lines = []
    for name, source in state["sources"].items():
        left_out = [f"{source[reason]:,} {reason.replace('_', ' ')}" for reason in COUNTS[2:] if source[reason]]
        lines.append(
            f"{name}: {source['tokens'] / total:.1%} of the tokens, {source['documents']:,} documents, "
            f"epoch {source['epoch'] + 1}" + (f"; left out: {', '.join(left_out)}" if left_out else "")
        )
    return lines


def begun_epochs(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each source that began another epoch between two states."""
    return [
        f"source {name}: all its documents have been used, epoch {source['epoch'] + 1} begins in another order"
        for name, source in after["sources"].items()
        if source["epoch"] > before["sources"][name]["epoch"]
    ]


def _bookends(mixture: Mixture, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens before and behind each document."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if mixture.bos is None:
        front = TextEncoder(tokenizer).prefix
    else:
        front = [bos] if mixture.bos and bos is not None else []
    back = [eos] if mixture.eos and eos is not None else []
    # One token for both ends (GPT-2, GPT-NeoX) separates documents; it need not stand twice.
    return ([] if front == back else front), back


def _check_vocabulary(mixture: Mixture, tokenizer: Any) -> None:
    for source in mixture.sources:
        template = source.template
        if isinstance(template, Tokenized) and template.vocab_size != len(tokenizer):
            raise SettingsError(
                f"the ids of source {source.name!r} were made by a tokenizer of {template.vocab_size} entries, the "
                f"model's has {len(tokenizer)}; use text instead"
            )


def _tokenizer_identity(tokenizer: Any) -> list[Any]:
    probe = "The  quick\tbrown fox, 12345 caf\u00e9 \u65e5\u672c\n\nreturn self.x\n"
    return [sorted(tokenizer.get_vocab().items()), TextEncoder(tokenizer).whole(probe).tolist()]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
