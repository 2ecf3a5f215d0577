"""The records of a data set once through, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from longrope.data.documents import files_of
from longrope.data.file_records import FileRecords
from longrope.data.hub_records import HubRecords
from longrope.data.records import Record, Records


def drawn_records(
    source: str | Path,
    seed: int,
    *,
    split: str = "train",
    revision: str | None = None,
    config: str | None = None,
) -> Iterator[Record]:
    """Every record of ``source`` once, at random; the first N are a sample of N.

    Args:
        source: a .jsonl or .parquet file, a folder of them, or the id of a Hugging Face dataset.
        split: of a hub dataset, as are ``revision`` and ``config``.

    Raises:
        DataError: if the source or a record cannot be read.
    """
    files, key = files_of(source), (seed, "evaluation")
    records: Records
    if files is None:
        records = HubRecords(
            str(source), config=config, split=split, revision=revision, files=(), columns=None, key=key
        )
    else:
        records = FileRecords(files, columns=None, text_field=None, key=key)
    place = records.first(0)
    while place is not None:
        block, place = records.block(0, place)
        for index in range(len(block)):
            record = block.read(index)
            if record is not None:
                yield record
