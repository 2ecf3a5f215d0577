"""Keys and values of one decoder layer at a time, in buffers that all layers share."""

from __future__ import annotations

from typing import Any

import torch


def attention_dtype(states: torch.Tensor) -> torch.dtype:
    """What queries, keys and values are computed in: under autocast its dtype, as torch's own attention does."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


class KeysCollectedError(Exception):
    """Raised through a layer whose keys and values were all that was wanted of it."""


class LayerKeys:
    """What a layer of transformers takes for a cache, and writes its keys and values to.

    A decoder that is run layer by layer over a whole sample needs those of one layer only. They are written where the
    chunk at hand lies, so that a chunk can be run again.

    Args:
        length: positions T of the sample.

    Attributes:
        start: position of the first token of the chunk that comes next.
        only: whether keys and values are all that is wanted of a layer.
    """

    def __init__(self, length: int) -> None:
        self.start = 0
        self.only = False
        self._length = length
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a chunk's keys and values, (B, G, n, d) and (B, G, n, e), and give all up to its end.

        Raises:
            KeysCollectedError: if they were all that is wanted.
        """
        written = self._write("key", key_states), self._write("value", value_states)
        if self.only:
            raise KeysCollectedError
        return written

    def buffers(self) -> list[torch.Tensor]:
        """All keys, and all values, (B, G, T, d) and (B, G, T, e), in one order in all processes."""
        return list(self._buffers.values())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before the chunk."""
        return self.start

    def _write(self, name: str, states: torch.Tensor) -> torch.Tensor:
        states = states.to(attention_dtype(states))
        rows, heads, new, size = states.shape
        place = (name, rows, heads, size, states.dtype, states.device)
        if place not in self._buffers:
            self._buffers[place] = states.new_empty(rows, heads, self._length, size)
        buffer = self._buffers[place]
        buffer[:, :, self.start : self.start + new] = states
        return buffer[:, :, : self.start + new]
