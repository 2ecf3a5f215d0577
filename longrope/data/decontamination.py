"""Leaving out documents that share an n-gram of words with texts that a model is evaluated on.

As for GPT-3 (arXiv 2005.14165, appendix C), words are compared in lower case, without punctuation, 13 in a row. Unlike
there the whole document is left out, not the passage alone, so that nothing around it gives the text away.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.data.documents import files_of
from longrope.data.file_records import FileRecords
from longrope.exceptions import DataError

NGRAM = 13

_WORD = re.compile(r"\w+")
_REMEMBERED = 1 << 20  # words whose hash is kept
_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)


class Decontaminator:
    """Knows the n-grams of the evaluation texts: 8 bytes each, however long the words.

    Equal n-grams have equal hashes; different ones with a probability of 2^-64 each.

    Args:
        files: text files, JSON Lines, Parquet, or folders of them. Of records, every text in every field counts.
        ngram: words in a row.

    Raises:
        DataError: if a file cannot be read, or no text has as many words.
    """

    def __init__(self, files: Sequence[Path], ngram: int = NGRAM) -> None:
        self._ngram = ngram
        self._words: dict[str, int] = {}
        hashes = [np.unique(self._hashes(text)) for file in files for text in _texts(file)]
        self._known = np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)
        if not len(self._known):
            named = ", ".join(map(str, files))
            raise DataError(f"no text in {named} has {ngram} words, so nothing can be compared; lower ngram")

    @property
    def identity(self) -> str:
        """What tells these texts from others."""
        return hashlib.sha256(b"%d/" % self._ngram + self._known.astype("<u8").tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        """Different n-grams."""
        return len(self._known)

    def contaminated(self, text: str) -> bool:
        """Whether ``text`` shares an n-gram with the evaluation texts."""
        hashes = self._hashes(text)
        places = np.searchsorted(self._known, hashes)
        places[places == len(self._known)] = 0
        return bool((self._known[places] == hashes).any())

    def _hashes(self, text: str) -> npt.NDArray[np.uint64]:
        """(words - ngram + 1,): a hash of each run of words."""
        found = _WORD.findall(text.lower())
        if len(self._words) > _REMEMBERED:
            self._words.clear()
        for word in set(found) - self._words.keys():
            digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
            self._words[word] = int.from_bytes(digest, "little")
        words = np.fromiter(map(self._words.__getitem__, found), dtype=np.uint64, count=len(found))
        runs = max(len(words) - self._ngram + 1, 0)
        hashes = np.zeros(runs, np.uint64)
        for offset in range(self._ngram):  # a polynomial in the words of the run, modulo 2^64
            hashes *= _BASE
            hashes += words[offset : offset + runs]
        return hashes


def _texts(source: Path) -> Iterator[str]:
    files = files_of(source) if source.exists() else None
    if files is None:
        raise DataError(f"the evaluation file {str(source)!r} does not exist")
    records = FileRecords(files, columns=None, text_field="text", key=("evaluation",))
    place = records.first(0)
    while place is not None:
        block, place = records.block(0, place)
        for index in range(len(block)):
            record = block.read(index)
            if record is not None:
                yield from _texts_in(record.fields)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
