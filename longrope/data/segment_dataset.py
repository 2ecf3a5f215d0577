"""Each process its own segments of every global step, and its own shard of them.

A step may train several windows of a model in turn, as LongRoPE2 does (arXiv 2502.20082). In a window
that is shorter than a segment, several short segments are packed in the place of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longrope.data.segments import IGNORED, Segment, SegmentStream
from longrope.data.windows import check_windows
from longrope.exceptions import SettingsError

Batch = dict[str, Any]


class SegmentDataset(IterableDataset[Batch]):
    """The micro batches of one process.

    A global step takes the next ``global_batch`` segments of the stream. Segment i of them belongs to micro step
    i // (micro_batch * world) of rank (i // micro_batch) % world, so that the same segments make a step with any
    number of processes. Every process packs the whole stream, since where a segment begins depends on all the
    tokens before it, and keeps what is its own.

    Micro batches, counted over the whole run, go to the windows in turn; those of one window follow each other within
    a step, so that as a rule all processes are at the same one. A window at least as long as a segment has whole
    segments, whose rows are shared by the processes of a sequence. In a shorter one a segment becomes L / window rows
    of so many tokens, which are dealt out whole.

    Yields, without end, for each micro step a dict of

    - ``input_ids``, ``position_ids``, ``shift_labels``: int64, (micro_batch, L / sp_size), the process's shard of its
      segments, or (micro_batch L / (window sp_size), window), its rows of a short window. ``shift_labels`` at t is the
      label of token t + 1 of the whole row, so the last token of a shard is scored on the first token of the next, and
      the last of the row on nothing (-100);
    - ``window``: full length, in tokens, by which the factors of the rows are chosen;
    - ``num_items``: labels that count in the whole global step, over all processes;
    - ``stream``, with the last micro step of a step: the state of the stream after that step.

    Args:
        stream: stands where the first step begins; not advanced. Iterating again begins there again.
        rank: of the process among those with data of their own.
        world: their number.
        sp_rank: of the process among those that share a sequence.
        sp_size: their number.
        windows: in tokens; one that is named twice has twice the share. That of a segment when empty.
        first_step: number of steps that were taken before.

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
        windows: Sequence[int] = (),
        first_step: int = 0,
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
        check_windows(windows, stream.length, sp_size)
        self._stream, self._start = stream, stream.state_dict()
        self._rank, self._world = rank, world
        self._micro_batch, self._global_batch = micro_batch, global_batch
        self._sp_rank, self._sp_size = sp_rank, sp_size
        self._windows, self._first_step = tuple(windows) or (stream.length,), first_step

    @property
    def micro_steps(self) -> int:
        """Micro batches of a global step."""
        return self._global_batch // (self._world * self._micro_batch)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise SettingsError(f"segments come in one order; use at most 1 loader worker, not {worker.num_workers}")
        self._stream.load_state_dict(self._start)
        micro_batches = self._global_batch // self._micro_batch
        step = self._first_step
        while True:
            own: list[Batch] = []
            items = 0
            turns = range(step * micro_batches, (step + 1) * micro_batches)
            for index, turn in enumerate(sorted(turn % len(self._windows) for turn in turns)):
                window = self._windows[turn]
                length = min(window, self._stream.length)
                count = self._micro_batch * self._stream.length // length
                segments = [self._stream.take(length) for _ in range(count)]
                items += sum(int(np.count_nonzero(segment.labels[1:] != IGNORED)) for segment in segments)
                if index % self._world == self._rank:
                    own.append({**self._batch(segments), "window": window})
            step += 1
            own[-1]["stream"] = self._stream.state_dict()
            for batch in own:
                batch["num_items"] = items
                yield batch

    def _batch(self, segments: list[Segment]) -> Batch:
        length = segments[0].tokens.size
        rows, columns = slice(None), slice(0, length)
        if length < self._stream.length:
            rows = _share(len(segments), self._sp_rank, self._sp_size)
        else:
            columns = _share(length, self._sp_rank, self._sp_size)
        tokens = np.stack([segment.tokens for segment in segments])
        labels = np.full(tokens.shape, IGNORED, np.int64)
        labels[:, :-1] = np.stack([segment.labels[1:] for segment in segments])
        own = torch.from_numpy(tokens[rows, columns].astype(np.int64))
        return {
            "input_ids": own,  # (B, L/sp)
            "position_ids": torch.arange(columns.start, columns.stop).expand(len(own), -1).contiguous(),  # (B, L/sp)
            "shift_labels": torch.from_numpy(labels[rows, columns].copy()),  # (B, L/sp)
        }


def _share(size: int, rank: int, world: int) -> slice:
    return slice(rank * (size // world), (rank + 1) * (size // world))


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
