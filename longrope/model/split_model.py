"""A model that several processes hold, one on each GPU, to score long samples together.

The process that loads it starts the others, tells them each sample, and works on its own parts of it. They end when it
does, however it ends; and it ends when one of them does, since the sample could not be completed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from longrope.exceptions import RunFailedError, SettingsError
from longrope.model.scoring_plan import ScoringPlan
from longrope.model.sequence_split import SequenceSplit
from longrope.rope.factors import RopeFactors
from longrope.rope.rotary import Mode

if TYPE_CHECKING:
    from longrope.model.load import ModelSource

_ATTRIBUTE = "longrope_peers"
_FOREVER = timedelta(days=30)  # samples may be long in coming, and sockets tell at once when a process is gone


@dataclass(frozen=True)
class Request:
    """A sample to score, see :func:`longrope.model.score.score_tokens`, how, and on how many CPU threads."""

    tokens: npt.NDArray[np.int64]
    factors: Sequence[RopeFactors]
    mode: Mode
    first: int
    plan: ScoringPlan
    threads: int


class Peers:
    """The other processes, from the one that works with them.

    Args:
        source: the model, and the device of this process.
        size: processes in all.

    Raises:
        SettingsError: if there are fewer GPUs.
        RunFailedError: if this process works with others already.
    """

    def __init__(self, source: ModelSource, size: int) -> None:
        self._on_gpu = source.device.startswith("cuda")
        if self._on_gpu and torch.cuda.device_count() < size:
            raise SettingsError(
                f"sp is {size}, but there are {torch.cuda.device_count()} GPUs for it; give at most that"
            )
        if distributed.is_initialized():
            raise RunFailedError("this process works with others already (torch.distributed); score with sp 1")
        self.place = SequenceSplit(0, size)
        store = _store(0, size)
        self._closing = threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, size):
                self._processes.append(_start(source, self._device(rank), rank, size, store.port))
                watched = self._processes[-1], self._closing
                threading.Thread(target=_watch, args=watched, daemon=True).start()
            _join(store, self.place, self._device(0))
        except BaseException:
            self._end()
            raise

    def announce(self, request: Request) -> None:
        """Tell the others to work on a sample, as this process is about to."""
        distributed.broadcast_object_list([request], src=0)

    def close(self) -> None:
        """End the other processes; this one scores alone from then on."""
        if not self.is_closed:
            self._end()
            distributed.destroy_process_group()

    def abandon(self) -> None:
        """End the other processes in the middle of a sample, wherever they are."""
        if not self.is_closed:
            self._end()
            # What a GPU was told to send to them would never end; what has ended need not be waited for.
            abort = getattr(distributed.distributed_c10d, "_abort_process_group", None)
            (abort if self._on_gpu and abort is not None else distributed.destroy_process_group)()

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    @property
    def failure(self) -> str | None:
        """What became of a process that was not ended from here, once all have ended."""
        codes = [process.returncode for process in self._processes if process.returncode]
        return _ended(codes[0]) if codes else None

    def _device(self, rank: int) -> str:
        return f"cuda:{rank}" if self._on_gpu else "cpu"

    def _end(self) -> None:
        self._closing.set()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait()


def _start(source: ModelSource, device: str, rank: int, size: int, port: int) -> subprocess.Popen[bytes]:
    told = {"source": asdict(replace(source, device=device, sp=1)), "rank": rank, "size": size, "port": port}
    # In a session of its own: Ctrl-C is for the first process.
    process = subprocess.Popen(
        [sys.executable, "-m", "longrope.model.split_model"], stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(told).encode() + b"\n")
    process.stdin.flush()
    return process


def _watch(process: subprocess.Popen[bytes], closing: threading.Event) -> None:
    code = process.wait()
    if not closing.is_set():
        # A collective operation that waits for it on a GPU would wait forever.
        print(f"error: {_ended(code)}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


def _ended(code: int) -> str:
    return f"a process that scored samples with this one ended with exit code {code}"


def split_over(model: Any, source: ModelSource, size: int) -> None:
    """Have a loaded model score long samples together with ``size - 1`` processes that are started for it."""
    peers = Peers(source, size)
    setattr(model, _ATTRIBUTE, peers)
    weakref.finalize(model, peers.close)


def peers_of(model: Any) -> Peers | None:
    """The processes that a model scores long samples with."""
    found: Peers | None = getattr(model, _ATTRIBUTE, None)
    return None if found is None or found.is_closed else found


def _store(port: int, size: int) -> Any:
    """Where the processes meet: of the first one, at any free port, where none is given."""
    module: Any = distributed
    return module.TCPStore("127.0.0.1", port, size, is_master=port == 0, wait_for_workers=False)


def _join(store: Any, place: SequenceSplit, device: str) -> None:
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.size,
        timeout=_FOREVER,
    )


def _serve() -> None:
    """What each of the others does."""
    told = json.loads(sys.stdin.readline())
    tempfile.tempdir = tempfile.mkdtemp(prefix="longrope-")  # of what loading writes; nobody else removes it
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    from transformers.utils import logging

    from longrope.model.load import ModelSource
    from longrope.model.score import nll_of_own_parts

    logging.disable_progress_bar()
    source, place = ModelSource(**told["source"]), SequenceSplit(told["rank"], told["size"])
    model = source.load_model()
    _join(_store(told["port"], place.size), place, source.device)
    while True:
        requests: list[Any] = [None]
        try:
            distributed.broadcast_object_list(requests, src=0)
        except RuntimeError:  # the first process is gone
            _leave()
        torch.set_num_threads(requests[0].threads)
        nll_of_own_parts(model, requests[0], place)


def _end_with_the_first() -> None:
    """The first process holds the other end of standard input, and says nothing more."""
    sys.stdin.read()
    _leave()


def _leave() -> None:
    """End at once, whatever collective operation this process waits in."""
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    _serve()
