"""Records of Hugging Face datasets: streamed, shuffled by seed, resumable at the exact row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from longrope.data.documents import import_for, in_one_line
from longrope.data.order import shuffled
from longrope.data.records import BLOCK, Block, LoadedBlock, Place, Record, Records
from longrope.exceptions import DataError

# The loader of each kind of file, where files of a dataset are named one by one.
_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
_PACKED = (".gz", ".zst", ".xz", ".bz2")


class HubRecords(Records):
    """The rows of a dataset on the hub.

    The shards are shuffled, and the rows within blocks of 256: the datasets library's own shuffle buffer is larger
    and mixes better, but what it holds is lost when a run stops. A place is a shard and the library's state of
    it, which is exact without a buffer. Resuming reads again what the library must skip within a shard, and the
    one block.

    Args:
        dataset: its id.
        files: files or patterns in the dataset's repository; all that its configuration names when empty.
        columns: fields that are wanted; None for all.
        key: decides the order of every epoch, together with its number.

    Raises:
        DataError: if the dataset cannot be opened, or stops.
    """

    def __init__(
        self,
        dataset: str,
        *,
        config: str | None,
        split: str,
        revision: str | None,
        files: Sequence[str],
        columns: Sequence[str] | None,
        key: Sequence[str | int],
    ) -> None:
        self._name, self._key = dataset, tuple(key)
        self._identity = [dataset, config, split, revision, *files]
        datasets = import_for("datasets", f"reading {dataset!r} from the Hugging Face hub")
        try:
            if files:
                # Named by their address, so that datasets which come with a loading script can be read as well.
                root = f"hf://datasets/{dataset}" + (f"@{revision}" if revision else "")
                data = datasets.load_dataset(
                    _loader(files), data_files=[f"{root}/{file}" for file in files], split="train", streaming=True
                )
            else:
                data = datasets.load_dataset(dataset, name=config, split=split, revision=revision, streaming=True)
        except DataError:
            raise
        except Exception as error:  # whatever the network, the hub or the dataset's own files can raise
            raise DataError(
                f"the dataset {dataset!r} cannot be read (split {split!r}): {in_one_line(error)}"
            ) from error
        if columns is not None and data.column_names is not None:
            data = data.select_columns([name for name in columns if name in data.column_names])
        self._data, self._shards = data, int(data.num_shards)
        self._open: tuple[int, Place, Any, Any] | None = None  # epoch, place, shard, its iterator

    @property
    def identity(self) -> Any:
        return self._identity

    def first(self, epoch: int) -> Place:
        return {"shard": 0, "row": 0, "state": None}

    def block(self, epoch: int, place: Place) -> tuple[Block, Place | None]:
        number = int(shuffled(self._shards, *self._key, epoch)[place["shard"]])
        try:
            shard, rows = self._opened(epoch, place, number)
            read = list(islice(rows, BLOCK))
            state = shard.state_dict()
        except Exception as error:
            raise DataError(
                f"the dataset {self._name!r} stopped in shard {number} after {place['row']} rows: {in_one_line(error)}"
            ) from error
        first = place["row"]
        records = [
            Record(f"{self._name}:{number}:{first + int(row)}", read[int(row)])
            for row in shuffled(len(read), *self._key, epoch, number, first)
        ]
        after: Place | None = None
        if len(read) == BLOCK:
            after = {"shard": place["shard"], "row": first + BLOCK, "state": state}
            self._open = (epoch, after, shard, rows)
        elif place["shard"] + 1 < self._shards:
            after = {"shard": place["shard"] + 1, "row": 0, "state": None}
        return LoadedBlock(records), after

    def _opened(self, epoch: int, place: Place, number: int) -> tuple[Any, Any]:
        if self._open is not None and self._open[:2] == (epoch, place):
            return self._open[2:]
        shard = self._data.shard(num_shards=self._shards, index=number)
        if place["state"] is not None:
            shard.load_state_dict(place["state"])
        return shard, iter(shard)

    def __getstate__(self) -> dict[str, Any]:
        # An iterator cannot go to another process; the place says where to open it again.
        return {**self.__dict__, "_open": None}


def _loader(files: Sequence[str]) -> str:
    kinds = set()
    for file in files:
        suffixes = [suffix for suffix in PurePosixPath(file).suffixes if suffix not in _PACKED]
        kinds.add(_LOADERS.get(suffixes[-1] if suffixes else ""))
    if len(kinds) != 1 or None in kinds:
        raise DataError(f"files {', '.join(files)} must all be of one kind: .jsonl, .parquet or .txt, packed or not")
    return str(kinds.pop())
