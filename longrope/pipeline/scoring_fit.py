"""Whether the texts that workers score fit where they are, and what to change where they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from longrope.finetune.hardware import Hardware
from longrope.finetune.model_shape import ModelShape
from longrope.lengths import format_length
from longrope.model.offloading import GPU_SHARE
from longrope.pipeline.scoring_memory import LIBRARIES, longest_that_fits, main_memory, scoring_memory
from longrope.pipeline.work import Work
from longrope.sizes import format_size
from longrope.workers.room import gpu_room

_SPREADS = (1, 2, 4, 8, 16)
"""GPUs of a worker that are advised."""


@dataclass(frozen=True)
class Places:
    """Workers of a stage.

    Attributes:
        workers: of all nodes.
        share: GPUs of each: several, or a fraction.
        on_gpu: whether they compute there.
        number: bytes of a number of the model as they load it.
        notes: on them.
        sp: processes of each that score a text together.
        given: whether the number of workers was, so that it does not follow from the GPUs of each.
    """

    workers: int
    share: float
    on_gpu: bool
    number: int
    notes: tuple[str, ...]
    sp: int
    given: bool = False

    @property
    def gpus(self) -> int:
        """That all of them hold."""
        return math.ceil(self.workers * self.share - 1e-9)


@dataclass(frozen=True)
class ScoringFit:
    """Texts of one kind in the memory of a machine; those that GPUs score are scored one at a time by each worker."""

    shape: ModelShape
    work: Work
    places: Places
    hardware: Hardware
    attention: str

    def check(self) -> tuple[float, str | None]:
        """Bytes where most are held, and what to do if these or others are too many."""
        if not self.places.on_gpu:
            return self._check_cpu()
        hardware, share = self.hardware, self.places.share
        assert hardware.memory is not None
        memory = self._on_gpu(share)
        if memory > hardware.memory:
            return memory, (
                f"does not fit: {self._told} needs {format_size(memory)} on a GPU, and {format_size(hardware.memory)} "
                f"are there; {self._more_gpus() or self._shorter()}"
            )
        left = self._in_main_memory(share)
        if left <= hardware.host_memory:
            return memory, None
        room = int(hardware.host_memory // (left / self._together(share)))  # all of them may be on one node
        fewer = f"execution.workers: {room} would make it fit" if room else "use machines with more memory"
        return memory, (
            f"does not fit: {self._told} has its residual stream in main memory, {format_size(left)} for the workers "
            f"of a node, and {format_size(hardware.host_memory)} are there; {self._more_gpus() or fewer}"
        )

    def _check_cpu(self) -> tuple[float, str | None]:
        places, free = self.places, self.hardware.host_memory
        parts = scoring_memory(self.shape, self.work, places.number, 1, self.attention, None, places.sp)
        each = sum(parts.values()) * places.sp
        memory = each * places.workers
        if memory <= free:
            return memory, None
        room = int(free // each)
        change = f"execution.workers: {room} would make it fit" if room else "use a machine with more memory"
        return memory, (
            f"does not fit: {self._told} needs {format_size(each)} in each of {places.workers} workers, and "
            f"{format_size(free)} are free; {change}"
        )

    def _more_gpus(self) -> str | None:
        """GPUs for each worker, in place of those that it has, with which all fits."""
        hardware = self.hardware
        assert hardware.memory is not None
        for more in _SPREADS:
            if more > hardware.devices_per_node or self.places.sp > 1:
                continue
            if self._on_gpu(more) <= hardware.memory and self._in_main_memory(more) <= hardware.host_memory:
                most = gpu_room(hardware.devices, more)
                fewer = f" and workers: {most}" if self.places.given and self.places.workers > most else ""
                return f"execution.gpus_per_worker: {more}{fewer} would make it fit"
        return None

    def _shorter(self) -> str:
        assert self.hardware.memory is not None
        longest = longest_that_fits(self.shape, self.work, self.places.number, self.hardware.memory)
        return (
            "more GPUs for each worker do not make it fit, for each holds K and V of all positions; the longest text "
            f"that fits is about {format_length(longest)}: use GPUs with more memory, or shorter texts"
        )

    @property
    def _told(self) -> str:
        return f"a text of {format_length(self.work.length)}"

    def _on_gpu(self, share: float) -> float:
        """Bytes on the GPU that holds most, of all workers that share it."""
        parts = scoring_memory(
            self._resident(share),
            self.work,
            self.places.number,
            self._layers_over(share),
            self.attention,
            self._part(share),
            self.places.sp,
        )
        return sum(parts.values()) * min(gpu_room(1, min(share, 1)), self.places.workers)

    def _in_main_memory(self, share: float) -> float:
        """Bytes in the main memory of a node."""
        places = self.places
        stream = main_memory(
            self._resident(share), self.work, places.number, self._layers_over(share), self._part(share), places.sp
        )
        return (stream + places.sp * LIBRARIES) * self._together(share) if stream else 0.0

    def _together(self, share: float) -> int:
        """Workers of a node."""
        return min(self.places.workers, max(gpu_room(self.hardware.devices_per_node, share), 1))

    def _layers_over(self, share: float) -> int:
        """GPUs that the layers of a model are spread over; processes that share a text have all of them each."""
        return max(int(share), 1) if self.places.sp == 1 else 1

    def _part(self, share: float) -> float:
        """Bytes of a GPU that a worker takes to be its own."""
        assert self.hardware.memory is not None
        return self.hardware.memory * min(share, 1)

    def _resident(self, share: float) -> ModelShape:
        """The model as GPUs hold it: where they do not hold all weights of it, one layer at a time."""
        offloaded = offloads(self.shape, self.places, self.hardware, share)
        return self.shape.with_one_layer() if offloaded else self.shape


def offloads(shape: ModelShape, places: Places, hardware: Hardware, share: float) -> bool:
    """Whether workers with so many GPUs keep layers elsewhere, as longrope/model/offloading.py decides."""
    if not places.on_gpu or hardware.memory is None or (share > 1 and places.sp == 1):
        return False
    return bool(places.number * shape.parameters > GPU_SHARE * min(share, 1) * hardware.memory)
