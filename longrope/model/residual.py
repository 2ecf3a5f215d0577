"""The residual stream of a whole sample: on the device, or in the memory of the host where it does not fit there."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod

import torch


class Residual(ABC):
    """Hidden states of a sample between two layers, (B, T, D), read and written in chunks."""

    @abstractmethod
    def read(self, start: int, stop: int) -> torch.Tensor:
        """Hidden states (B, stop - start, D) on the device; valid until they are written."""

    @abstractmethod
    def write(self, start: int, states: torch.Tensor) -> None:
        """Put states (B, n, D) at positions from ``start`` on."""


class DeviceResidual(Residual):
    """On the device of its first part.

    Args:
        like: a part of it, which tells all but the length.
        begin: the first position.
        end: the one after the last.
    """

    def __init__(self, like: torch.Tensor, begin: int, end: int) -> None:
        self._begin = begin
        self._states = like.new_empty(like.shape[0], end - begin, like.shape[2])

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self._states[:, start - self._begin : stop - self._begin]

    def write(self, start: int, states: torch.Tensor) -> None:
        first = start - self._begin
        self._states[:, first : first + states.shape[1]] = states


class HostResidual(Residual):
    """In pinned memory of the host. The next chunk is fetched, and the last one put back, while a layer computes.

    Args:
        like: a part of it, which tells all but the length, and the device where it is computed.
        begin: the first position.
        end: the one after the last.
    """

    def __init__(self, like: torch.Tensor, begin: int, end: int) -> None:
        self._device = like.device
        self._begin, self._end = begin, end
        # Positions first, so that a chunk of several rows is one piece of memory too.
        self._states = torch.empty(end - begin, like.shape[0], like.shape[2], dtype=like.dtype)
        self._stream = None
        if like.device.type == "cuda":
            _pin(self._states)
            # One stream for both ways: what is fetched was put back before, in this order.
            self._stream = torch.cuda.Stream(like.device)
        self._fetched: tuple[int, int, torch.Tensor, torch.cuda.Event | None] | None = None

    def read(self, start: int, stop: int) -> torch.Tensor:
        if self._fetched is None or self._fetched[:2] != (start, stop):
            self._fetch(start, stop)
        assert self._fetched is not None
        _, _, states, event = self._fetched
        self._fetched = None
        if event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(event)
            states.record_stream(current)
        if stop < self._end:
            self._fetch(stop, min(2 * stop - start, self._end))
        return states.transpose(0, 1)

    def write(self, start: int, states: torch.Tensor) -> None:
        place = self._place(start, start + states.shape[1])
        # On the device whose streams are ordered here: layers may be spread over several.
        states = states.to(self._device).transpose(0, 1).contiguous()
        if self._stream is None:
            place.copy_(states)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            place.copy_(states, non_blocking=True)
        states.record_stream(self._stream)

    def _fetch(self, start: int, stop: int) -> None:
        place = self._place(start, stop)
        if self._stream is None:
            self._fetched = start, stop, place.to(self._device, copy=True), None
            return
        with torch.cuda.stream(self._stream):
            states = place.to(self._device, non_blocking=True)
            self._fetched = start, stop, states, self._stream.record_event()

    def _place(self, start: int, stop: int) -> torch.Tensor:
        return self._states[start - self._begin : stop - self._begin]


def _pin(states: torch.Tensor) -> None:
    """Pin memory as large as it is: what torch allocates pinned is rounded up to a power of two, and kept."""
    runtime = torch.cuda.cudart()
    address = states.data_ptr()
    code = int(runtime.cudaHostRegister(address, states.nbytes, 0))
    if code:
        raise RuntimeError(f"{states.nbytes} bytes of main memory could not be pinned (CUDA error {code})")
    weakref.finalize(states, runtime.cudaHostUnregister, address)
