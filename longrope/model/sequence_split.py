"""A long sample over several processes: each works on parts of it, and all have one layer's keys and values.

Queries see the keys before them, so the end of a sample is most of the work. It is cut into twice as many parts as
there are processes, and each works on one from the beginning and one from the end: together the same work for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed

from longrope.model.layer_keys import LayerKeys


@dataclass(frozen=True)
class SequenceSplit:
    """The place of a process among those that score a sample together; torch's default group is theirs.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int
    size: int

    def parts(self, length: int) -> list[tuple[int, int]]:
        """Positions where this process's parts of a sample begin and end, in order."""
        return [(begin, end) for begin, end, rank in self._all(length) if rank == self.rank]

    def gather(self, keys: LayerKeys, length: int) -> None:
        """Complete the keys and values of a layer, of which each process has those of its parts."""
        for buffer in keys.buffers():
            for begin, end, rank in self._all(length):
                part = buffer[:, :, begin:end].contiguous()
                distributed.broadcast(part, src=rank)
                if rank != self.rank:
                    buffer[:, :, begin:end] = part

    def sum(self, values: torch.Tensor) -> None:
        """Replace values by their sums over the processes."""
        distributed.all_reduce(values)

    def _all(self, length: int) -> list[tuple[int, int, int]]:
        """Begin, end and rank of each part that is not empty."""
        count = 2 * self.size
        bounds = [length * part // count for part in range(count + 1)]
        ranks = [*range(self.size), *reversed(range(self.size))]
        return [each for each in zip(bounds[:-1], bounds[1:], ranks, strict=True) if each[0] < each[1]]
