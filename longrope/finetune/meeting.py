"""Letting one process do what only one may, while the others wait for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta

import torch

from longrope.exceptions import InvalidInputError, LongRopeError
from longrope.finetune.world import World

LONGEST_WAIT = timedelta(hours=2)
"""How long processes wait for each other: while the first one downloads a model, or writes one of 70B to slow storage.

A process that dies is noticed at once, by whoever started it.
"""


def first_alone(world: World, device: str, work: Callable[[], bool]) -> bool:
    """Do ``work`` in the first process, and come back in all of them with what it returned.

    Where a launcher started several processes, this starts their process group, which training goes on to use.

    Raises:
        LongRopeError: what the first process raised; the others leave without a word.
    """
    if world.size > 1 and not torch.distributed.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(world.local_rank)
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=LONGEST_WAIT)
    failed: LongRopeError | None = None
    result = False
    if world.rank == 0:
        try:
            result = work()
        except LongRopeError as error:
            failed = error
    if world.size > 1:
        told = [0 if failed is None else 2 if isinstance(failed, InvalidInputError) else 1, result]
        torch.distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        status, result = int(told[0]), bool(told[1])
        if failed is None and status:
            sys.exit(status)
    if failed is not None:
        raise failed
    return result
