"""A sample in parts, the parts made smaller where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")

_TOLD_OF_MAIN_MEMORY = (
    "can't allocate memory",
    "could not be pinned",  # what residual.py says
)
_TOLD_OF_GPUS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # what cuBLAS says when there is no memory for its handle
)


class Parts:
    """Positions in parts of a size that is halved where memory runs out, for all that follow as well.

    Args:
        size: positions at a time.
        least: positions at which running out of memory is an error.
        retries: whether a part may be begun again at all.
        release: called before it is, to let go of what is not needed.
    """

    def __init__(self, size: int, least: int, retries: bool = True, release: Callable[[], None] = lambda: None) -> None:
        self._size, self._least, self._retries, self._release = size, least, retries, release

    def over(self, first: int, end: int, work: Callable[[int, int], Made]) -> Iterator[tuple[int, Made]]:
        """Where each part from ``first`` to ``end`` starts, and what ``work``, called with its ends, makes of it.

        A part for which there is no memory is begun again as a smaller one.
        """
        start = first
        while start < end:
            stop = min(start + self._size, end)
            made = None
            try:
                made = (work(start, stop),)
            except RuntimeError as error:
                if not is_out_of_memory(error) or stop - start <= self._least or not self._retries:
                    raise
            if made is None:  # and the error no longer holds on to what was allocated
                self._size = max((stop - start) // 2, self._least)
                self._release()
                free_unused()
            else:
                yield start, made[0]
                start = stop


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in main memory."""
    if isinstance(error, torch.OutOfMemoryError) or is_out_of_main_memory(error):
        return True
    return any(part in str(error) for part in _TOLD_OF_GPUS)


def is_out_of_main_memory(error: BaseException) -> bool:
    """Whether an allocation in main memory failed."""
    return any(part in str(error) for part in _TOLD_OF_MAIN_MEMORY)


def free_unused() -> None:
    """Give back what the allocator of GPUs keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def may_retry(module: Any) -> bool:
    """Not under DeepSpeed's ZeRO 3, where a pass that one process begins again has no counterpart in the others."""
    return not any(hasattr(parameter, "ds_id") for parameter in module.parameters())
