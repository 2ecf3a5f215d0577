"""Records of files by random access: an index of where each begins is built once, and nothing is read in vain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.data.documents import import_for, in_one_line, parse_line, text_of
from longrope.data.order import shuffled
from longrope.data.records import BLOCK, Block, Place, Record, Records
from longrope.exceptions import DataError

SCAN = 1 << 24  # bytes of a JSON Lines file looked through at a time while it is indexed


@dataclass(frozen=True)
class _File:
    """A file, and its units: what is shuffled and read as a whole.

    A unit is a text file, a line of JSON Lines, or a row group of Parquet: single rows of one cannot be read
    without decoding it all.
    """

    path: Path
    size: int  # bytes
    units: int
    starts: npt.NDArray[np.int64] | None = None  # (units + 1,) byte offsets of lines
    row_groups: bool = False


class FileRecords(Records):
    """The records of files.

    Lines of JSON Lines and text files are shuffled over the whole source. The row groups of Parquet files are
    shuffled with them, and the rows of a group, which are used one after the other, within it.

    Args:
        files: the files, in a fixed order.
        columns: fields that are wanted of Parquet files; None for all.
        text_field: what the text of a text file is called; None where text files do not serve.
        key: decides the order of every epoch, together with its number.

    Raises:
        DataError: if a file cannot be read.
    """

    def __init__(
        self, files: Sequence[Path], *, columns: Sequence[str] | None, text_field: str | None, key: Sequence[str | int]
    ) -> None:
        self._columns, self._text_field, self._key = columns, text_field, tuple(key)
        self._files = [self._index(path) for path in files]
        self._ends = np.cumsum([file.units for file in self._files], dtype=np.int64)
        self._units = int(self._ends[-1])
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    @property
    def identity(self) -> Any:
        # A digest, for a source may have any number of files. Their folder may be another one tomorrow.
        files = [[file.path.name, file.size, file.units] for file in self._files]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]

    def first(self, epoch: int) -> Place:
        return 0

    def block(self, epoch: int, place: Place) -> tuple[Block, Place | None]:
        if self._order[0] != epoch:
            self._order = (epoch, shuffled(self._units, *self._key, epoch))
        units = self._order[1][place : place + BLOCK]
        which = np.searchsorted(self._ends, units, side="right")
        members = [
            (self._files[file], int(unit - self._ends[file]) + self._files[file].units)
            for file, unit in zip(which.tolist(), units, strict=True)
        ]
        block: Block
        if members and members[0][0].row_groups:
            block, used = self._row_group(*members[0], epoch), 1
        else:
            lines = list(takewhile(lambda member: not member[0].row_groups, members))
            block, used = _Lines(lines, self._read), len(lines)
        after = place + used
        return block, after if after < self._units else None

    def _index(self, path: Path) -> _File:
        kind = path.suffix.lower()
        with _reading(path):
            size = path.stat().st_size
            if kind == ".jsonl":
                starts = _line_starts(path)
                return _File(path, size, len(starts) - 1, starts)
            if kind == ".parquet":
                if size == 0:
                    return _File(path, 0, 0, row_groups=True)
                with _open_parquet(path) as file:
                    return _File(path, size, file.metadata.num_row_groups, row_groups=True)
        if self._text_field is None:
            raise DataError(f"{str(path)!r} holds plain text, but its source needs records; give .jsonl or .parquet")
        return _File(path, size, 1)

    def _read(self, file: _File, unit: int) -> Record | None:
        with _reading(file.path):
            if file.starts is None:
                assert self._text_field is not None
                return Record(str(file.path), {self._text_field: text_of(file.path)})
            start, end = file.starts[unit : unit + 2].tolist()
            with file.path.open("rb") as stream:
                stream.seek(start)
                line = stream.read(end - start)
        fields = parse_line(line, f"line {unit + 1} of {str(file.path)!r}")
        return None if fields is None else Record(f"{file.path}:{unit + 1}", fields)

    def _row_group(self, file: _File, group: int, epoch: int) -> Block:
        with _reading(file.path), _open_parquet(file.path) as parquet:
            names = parquet.schema_arrow.names
            columns = names if self._columns is None else [name for name in self._columns if name in names]
            table = parquet.read_row_group(group, columns=columns)
            before = sum(parquet.metadata.row_group(earlier).num_rows for earlier in range(group))
            rows = parquet.metadata.row_group(group).num_rows
        order = shuffled(rows, *self._key, epoch, file.path.name, group)
        return _Rows(table, order, f"{file.path}:", before)


class _Lines(Block):
    """Lines and text files, each read when it is asked for."""

    def __init__(self, members: list[tuple[_File, int]], read: Callable[[_File, int], Record | None]) -> None:
        self._members, self._read = members, read

    def __len__(self) -> int:
        return len(self._members)

    def read(self, index: int) -> Record | None:
        return self._read(*self._members[index])


class _Rows(Block):
    """The rows of a row group, each made into Python objects when it is asked for."""

    def __init__(self, table: Any, order: npt.NDArray[np.int64], prefix: str, before: int) -> None:
        self._table, self._order, self._prefix, self._before = table, order, prefix, before

    def __len__(self) -> int:
        return len(self._order)

    def read(self, index: int) -> Record:
        row = int(self._order[index])
        fields = {name: self._table.column(name)[row].as_py() for name in self._table.column_names}
        return Record(f"{self._prefix}{self._before + row}", fields)


def _line_starts(path: Path) -> npt.NDArray[np.int64]:
    """(lines + 1,): where each line begins, and where the last one ends."""
    found, offset = [np.zeros(1, np.int64)], 0
    with path.open("rb") as stream:
        while piece := stream.read(SCAN):
            found.append(np.flatnonzero(np.frombuffer(piece, np.uint8) == 0x0A) + (offset + 1))
            offset += len(piece)
    starts = np.concatenate(found)
    return starts if starts[-1] == offset else np.append(starts, offset)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    arrow = import_for("pyarrow", f"reading {str(path)!r}")
    parquet = import_for("pyarrow.parquet", f"reading {str(path)!r}")
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except arrow.ArrowException as error:
        raise DataError(f"data file {str(path)!r} cannot be read as Parquet: {in_one_line(error)}") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"data file {str(path)!r} cannot be read: {in_one_line(error)}") from error
