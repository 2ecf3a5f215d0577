"""Each process its own segments of every global step, and its own shard of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longrope.data.segments import IGNORED, Segment, SegmentStream
from longrope.exceptions import SettingsError
from longrope.lengths import format_length

Batch = dict[str, Any]


class SegmentDataset(IterableDataset[Batch]):
    """The micro batches of one process.

    A global step takes the next ``global_batch`` segments of the stream. Segment i of them belongs to micro step
    i // (micro_batch * world) of rank (i // micro_batch) % world, so that the same segments make a step with any
    number of processes. Every process packs the whole stream, since where a segment begins depends on all the
    tokens before it, and keeps what is its own.

    Yields, without end, for each micro step a dict of

    - ``input_ids``, ``position_ids``, ``shift_labels``: (micro_batch, length / sp_size) int64, the process's shard of
      its segments. ``shift_labels`` at t is the label of token t + 1 of the whole segment, so the last token of a
      shard is scored on the first token of the next, and the last of the segment on nothing (-100);
    - ``num_items``: labels that count in the whole global step, over all processes;
    - ``stream``, with the last micro step of a step: the state of the stream after that step.

    Args:
        stream: stands where the first step begins; not advanced. Iterating again begins there again.
        rank: of the process among those with data of their own.
        world: their number.
        sp_rank: of the process among those that share a sequence.
        sp_size: their number.

    Raises:
        SettingsError: if the batch or the segment cannot be divided.
    """

    def __init__(
        self,
        stream: SegmentStream,
        *,
        rank: int = 0,
        world: int = 1,
        micro_batch: int = 1,
        global_batch: int = 1,
        sp_rank: int = 0,
        sp_size: int = 1,
    ) -> None:
        assert 0 <= rank < world
        assert 0 <= sp_rank < sp_size
        together = world * micro_batch
        if global_batch % together:
            below = global_batch // together * together
            allowed = f"{below} or {below + together}" if below else f"{together}"
            raise SettingsError(
                f"global-batch {global_batch} cannot be divided by {world} data-parallel processes with micro-batch "
                f"{micro_batch}; give {allowed}, or another multiple of {together}"
            )
        if stream.length % sp_size:
            raise SettingsError(
                f"a segment of {format_length(stream.length)} cannot be cut into {sp_size} equal shards; choose an sp "
                "that divides it"
            )
        self._stream, self._start = stream, stream.state_dict()
        self._rank, self._world = rank, world
        self._micro_batch, self._global_batch = micro_batch, global_batch
        shard = stream.length // sp_size
        self._shard = slice(sp_rank * shard, (sp_rank + 1) * shard)

    @property
    def micro_steps(self) -> int:
        """Micro batches of a global step."""
        return self._global_batch // (self._world * self._micro_batch)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise SettingsError(f"segments come in one order; use at most 1 loader worker, not {worker.num_workers}")
        self._stream.load_state_dict(self._start)
        while True:
            own: list[Segment] = []
            items = 0
            for index in range(self._global_batch):
                segment = next(self._stream)
                items += int(np.count_nonzero(segment.labels[1:] != IGNORED))
                if index // self._micro_batch % self._world == self._rank:
                    own.append(segment)
            state = self._stream.state_dict()
            for first in range(0, len(own), self._micro_batch):
                batch = self._batch(own[first : first + self._micro_batch])
                batch["num_items"] = items
                if first + self._micro_batch == len(own):
                    batch["stream"] = state
                yield batch

    def _batch(self, segments: list[Segment]) -> Batch:
        tokens = np.stack([segment.tokens[self._shard] for segment in segments])
        labels = np.full((len(segments), segments[0].labels.size), IGNORED, np.int64)
        labels[:, :-1] = np.stack([segment.labels[1:] for segment in segments])
        positions = torch.arange(self._shard.start, self._shard.stop)
        return {
            "input_ids": torch.from_numpy(tokens.astype(np.int64)),  # (B, L/sp)
            "position_ids": positions.expand(len(segments), -1).contiguous(),  # (B, L/sp)
            "shift_labels": torch.from_numpy(labels[:, self._shard].copy()),  # (B, L/sp)
        }


def segment_loader(dataset: SegmentDataset, *, workers: int = 1) -> DataLoader[Batch]:
    """A loader that hands the micro batches on as they are.

    Args:
        workers: 1 to pack in another process, a global step ahead, while the model is trained; 0 to pack in this one.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        collate_fn=unchanged,
        num_workers=workers,
        prefetch_factor=max(2, dataset.micro_steps) if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def unchanged(batch: Any) -> Any:
    """The collate function: a batch is ready as it is."""
    return batch
