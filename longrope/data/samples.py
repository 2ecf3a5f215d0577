"""Long samples for a search: drawn at random by seed, on which every candidate is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from longrope.data.documents import Document
from longrope.data.tokens import TextEncoder, Tokens
from longrope.exceptions import DataError, SettingsError


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens that candidates are scored on. Two samples are equal when their tokens are.

    Attributes:
        name: the document, or documents, that the tokens come from.
        tokens: (T,) int32, read-only.
        first: position of the first token that counts; all before it is only read.
        digest: 16 hex digits of the SHA-256 of the tokens (little-endian), and of ``first`` where it is not 1, which
            name the sample in journals.
    """

    name: str
    tokens: Tokens
    first: int = 1
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        tokens = np.array(self.tokens, dtype=np.int32)
        tokens.setflags(write=False)
        object.__setattr__(self, "tokens", tokens)
        told = b"" if self.first == 1 else b"/%d" % self.first
        object.__setattr__(self, "digest", hashlib.sha256(tokens.astype("<i4").tobytes() + told).hexdigest()[:16])

    def prefix(self, length: int) -> Sample:
        """The first ``length`` tokens, as a sample of its own."""
        assert 0 < length <= len(self.tokens)
        assert self.first == 1, "the tokens that count stand at the end"
        return Sample(self.name, self.tokens[:length])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sample) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class SampleSet:
    """Samples that guide the search, and others, from other documents, that only judge its result."""

    search: tuple[Sample, ...]
    held_out: tuple[Sample, ...] = ()


def draw_samples(
    documents: Iterable[Document],
    tokenizer: Any,
    length: int,
    count: int,
    held_out: int,
    seed: int,
    concatenate: bool = False,
    *,
    max_documents: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> SampleSet:
    """Draw ``count + held_out`` samples of exactly ``length`` tokens, each from documents of its own.

    A sample is the first ``length`` tokens of a document that has at least as many; every such document is
    equally likely. With ``concatenate``, documents of any length are joined in a random order, each beginning
    with BOS (where the tokenizer adds one) and ending with EOS (where it has one), and what a sample leaves
    over of its last document is dropped. Documents with the same text, or the same first ``length`` tokens,
    count once.

    The draw depends on the seed and the set of texts alone: neither on the order of the documents, nor, for
    the search samples, on how many are held out.

    Args:
        documents: read once, one at a time; only what a sample needs is kept.
        tokenizer: a Hugging Face tokenizer.
        length: tokens in a sample, special tokens included.
        count: samples that guide the search.
        held_out: samples that do not; may be 0.
        seed: decides the draw.
        concatenate: join documents instead of asking for long ones.
        max_documents: read no more documents than this; for streams that are too long to be read to the end.
        progress: called after every document with the number read so far.

    Raises:
        DataError: if there are too few long documents, or, with ``concatenate``, too little text.
        SettingsError: if a number is out of range.
    """
    _require_at_least(2, "the length of a sample", length)
    _require_at_least(1, "the number of samples", count)
    _require_at_least(0, "the number of held-out samples", held_out)
    if max_documents is not None:
        _require_at_least(1, "the most documents to read", max_documents)
    draw = (_JoinedDraw if concatenate else _LongDraw)(TextEncoder(tokenizer), length, count, held_out)
    read = 0
    for read, document in enumerate(islice(documents, max_documents), start=1):
        text = document.text.encode()
        # A hash of seed and text puts all texts in one random order, and equal texts in one place of it.
        draw.offer(hashlib.sha256(b"%d/" % seed + hashlib.sha256(text).digest()).digest(), document, len(text))
        if progress is not None:
            progress(read)
    samples = tuple(draw.samples(read))
    return SampleSet(samples[:count], samples[count:])


def sample_from_text(text: str, tokenizer: Any, length: int, name: str = "text") -> Sample:
    """The first ``length`` tokens of ``text``.

    Raises:
        DataError: if ``text`` has fewer.
    """
    tokens = TextEncoder(tokenizer).first(text, length)
    if len(tokens) < length:
        raise DataError(f"{name} has {len(tokens)} tokens, fewer than {length}; give a longer text or a shorter length")
    return Sample(name, tokens)


def _require_at_least(least: int, what: str, value: int) -> None:
    if value < least:
        raise SettingsError(f"{what} is {value}; it must be at least {least}")


class _LongDraw:
    """The ``needed`` documents that come first in the random order among those that are long enough."""

    def __init__(self, encoder: TextEncoder, length: int, count: int, held_out: int) -> None:
        self._encoder, self._length = encoder, length
        self._count, self._held_out, self._needed = count, held_out, count + held_out
        self._kept: dict[bytes, Sample] = {}  # by place in the random order
        self._last = b""  # the last place kept, once there are as many as needed
        self._longest: tuple[bool, int, Document] | None = None  # long enough, bytes; for the error

    def offer(self, place: bytes, document: Document, size: int) -> None:
        if place in self._kept:  # the same text again: named alike whichever comes first
            if document.name < self._kept[place].name:
                self._kept[place] = Sample(document.name, self._kept[place].tokens)
            return
        full = len(self._kept) == self._needed
        if full and place > self._last:
            return
        long_enough = False
        if self._encoder.most_tokens(size) >= self._length:
            tokens = self._encoder.first(document.text, self._length)
            long_enough = len(tokens) == self._length
        if long_enough:
            self._keep(place, Sample(document.name, tokens))
        if not full:
            self._note_longest(long_enough, size, document)

    def _keep(self, place: bytes, sample: Sample) -> None:
        twin = next((other for other, kept in self._kept.items() if kept == sample), None)
        if twin is not None:
            if twin < place:
                return
            del self._kept[twin]
        self._kept[place] = sample
        if len(self._kept) > self._needed:
            del self._kept[max(self._kept)]
        if len(self._kept) == self._needed:
            self._last = max(self._kept)

    def _note_longest(self, long_enough: bool, size: int, document: Document) -> None:
        if self._longest is not None:
            was_enough, most, longest = self._longest
            if (was_enough, most) > (long_enough, size):
                return
            if (was_enough, most) == (long_enough, size) and longest.name <= document.name:
                return
        self._longest = (long_enough, size, document)

    def samples(self, read: int) -> Iterator[Sample]:
        # No document was passed over for its place while there were too few, so the number found is exact.
        found = len(self._kept)
        if found == self._needed:
            return (self._kept[place] for place in sorted(self._kept))
        needed = f"{self._needed} documents of at least {self._length} tokens are needed"
        if self._held_out:
            needed += f" ({self._count} to search on and {self._held_out} held out)"
        if self._longest is None:
            raise DataError(f"{needed}, but there are no documents")
        longest = self._longest[2]
        tokens = len(self._encoder.first(longest.text, self._encoder.most_tokens(self._longest[1])))
        raise DataError(
            f"{needed}, but only {found} of the {read} read are long enough; the longest, {longest.name}, has {tokens} "
            "tokens; join documents with --concatenate, or choose a shorter length"
        )


class _JoinedDraw:
    """Samples filled one after the other with the documents in their random order."""

    def __init__(self, encoder: TextEncoder, length: int, count: int, held_out: int) -> None:
        self._encoder, self._length, self._needed = encoder, length, count + held_out
        self._kept: dict[bytes, tuple[str, Tokens]] = {}  # name and tokens by place in the random order
        self._total = 0  # tokens kept
        self._last: bytes | None = None  # the last place used, once the samples are full

    def offer(self, place: bytes, document: Document, size: int) -> None:
        if place in self._kept:
            name, tokens = self._kept[place]
            self._kept[place] = (min(name, document.name), tokens)
            return
        if size == 0 or (self._last is not None and place > self._last):
            return
        tokens = self._encoder.first(document.text, self._length)
        if len(tokens) < self._length and self._encoder.eos is not None:
            tokens = np.append(tokens, np.int32(self._encoder.eos))
        self._kept[place] = (document.name, tokens)
        self._total += len(tokens)
        # A sample uses up less than twice its length, so twice what is needed always fills them all. Waiting
        # for twice that again keeps the sorting rare.
        if self._total > 4 * self._needed * self._length:
            self._drop_unused()

    def _drop_unused(self) -> None:
        used = [place for places in self._fill() for place in places]
        self._last = used[-1]
        self._kept = {place: self._kept[place] for place in used}
        self._total = sum(len(tokens) for _, tokens in self._kept.values())

    def _fill(self) -> list[list[bytes]]:
        """The places of the documents that fill each sample."""
        samples: list[list[bytes]] = []
        current: list[bytes] = []
        tokens = 0
        for place in sorted(self._kept):
            if len(samples) == self._needed:
                break
            current.append(place)
            tokens += len(self._kept[place][1])
            if tokens >= self._length:
                samples.append(current)
                current, tokens = [], 0
        return samples

    def samples(self, read: int) -> Iterator[Sample]:
        filled = self._fill()
        if len(filled) < self._needed:
            raise DataError(
                f"{self._needed} samples of {self._length} tokens are needed, but the {read} documents read fill only "
                f"{len(filled)} ({self._total} tokens in all, joined); give more text, or choose a shorter length"
            )
        for places in filled:
            documents = [self._kept[place] for place in places]
            name = documents[0][0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")
            yield Sample(name, np.concatenate([tokens for _, tokens in documents])[: self._length])
