"""Whether a text that is scored has room where its model is, and what to say where it has none."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from longrope.finetune.hardware import Hardware
from longrope.finetune.model_shape import ModelShape
from longrope.lengths import format_length
from longrope.model.load import DTYPES
from longrope.model.offloading import layers_kept
from longrope.pipeline.scoring_memory import MANY, longest_that_fits, scoring_memory
from longrope.pipeline.work import Work
from longrope.runs.model import LoadedModel
from longrope.sizes import format_size
from longrope.workers.settings import ExecutionSettings


@dataclass(frozen=True, kw_only=True)
class ScoringRoom:
    """Memory for texts of any length.

    Attributes:
        shape: of the model; the parameters are those that the GPUs hold.
        number: bytes of a number of it.
        gpus: that its layers are spread over.
        processes: each with a GPU and all weights, that score a text together.
        attention: as in transformers.
        memory: bytes of a GPU; None on CPU.
    """

    shape: ModelShape
    number: int
    gpus: int = 1
    processes: int = 1
    attention: str = "sdpa"
    memory: float | None = None

    @classmethod
    def of(cls, model: LoadedModel, execution: ExecutionSettings, shape: ModelShape) -> ScoringRoom:
        """The room of a model that is about to be loaded."""
        source, number = model.source, DTYPES[model.source.dtype].itemsize
        memory = Hardware.here().memory if source.on_gpu else None
        if memory is not None and source.device != "auto":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # loading warns of it
                kept = layers_kept(source.name, source.folder(), number, source.device, source.share)
            if kept is not None:  # one layer at a time is on the GPU
                shape = shape.with_one_layer()
        return cls(
            shape=shape,
            number=number,
            gpus=int(execution.gpus_per_model) if source.device == "auto" else 1,
            processes=execution.sp,
            attention=source.attention,
            memory=None if memory is None else source.share * memory,
        )

    def foreseen(self, lengths: Sequence[int]) -> str | None:
        """A line on the lengths that do not fit on a GPU; None where all do, or nobody knows."""
        memory = self.memory
        if memory is None:
            return None
        longer = [length for length in lengths if self._needed(length) > memory]
        if not longer:
            return None
        return (
            f"{', '.join(map(format_length, longer))}: not expected to fit; {self._sizes(longer[0])}, and "
            f"{self._longest(longer[-1])}; tried all the same, the shortest first"
        )

    def ran_out(self, length: int, on_host: bool) -> str:
        """A line on memory that ran out at a length, and what to do.

        Args:
            on_host: whether it was main memory.
        """
        at = f"ran out at {format_length(length)} tokens"
        if self.memory is None or on_host:
            needs = "" if self.memory is not None else f", which need {self._told(self._needed(length))}"
            return f"main memory {at}{needs}; give fewer tokens, or use a machine with more memory"
        more = "give fewer tokens, or use a GPU with more memory"
        if self._needed(length) <= self.memory:
            return (
                f"the memory of a GPU {at}, although {self._sizes(length)}: see whether others use the GPU (nvidia-smi)"
                f"; else {more}"
            )
        return (
            f"the memory of a GPU {at}: {self._sizes(length)}; {self._longest(length)}: {more}; more GPUs hold the "
            "weights only, for keys and values of a layer are on each"
        )

    def _needed(self, length: int) -> float:
        """Bytes on the GPU that holds most; on CPU of all processes."""
        parts = scoring_memory(
            self.shape, _work(length), self.number, self.gpus, self.attention, self.memory, self.processes
        )
        return sum(parts.values()) * (self.processes if self.memory is None else 1)

    def _sizes(self, length: int) -> str:
        assert self.memory is not None
        needs = self._told(self._needed(length))
        return f"a text of {format_length(length)} needs {needs} on a GPU, and {format_size(self.memory)} are there"

    def _longest(self, length: int) -> str:
        """What fits on these GPUs, and what would on more, where that is another length."""
        assert self.memory is not None
        here, most = (
            longest_that_fits(self.shape, _work(length), self.number, self.memory, gpus, self.processes)
            for gpus in (self.gpus, MANY if self.processes == 1 else 1)
        )
        told = f"the longest text that fits is about {format_length(here)}" if here else "no text fits"
        return f"{told}, with any number of GPUs for its layers {format_length(most)}" if most > here else told

    @staticmethod
    def _told(size: float) -> str:
        return f"about {format_size(size)}"


def _work(length: int) -> Work:
    return Work(length=length, count=1, predicted=length - 1)
