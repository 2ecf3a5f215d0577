"""LocalPool: evaluators in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from longrope.exceptions import SettingsError, WorkerError
from longrope.workers.dispatch import WorkerPool
from longrope.workers.pool import EvaluatorFactory, Labelled
from longrope.workers.room import gpu_room
from longrope.workers.worker import Died, NotLoaded, Reply, Worker, not_loaded, thread_environment

SPAWN = multiprocessing.get_context("spawn")  # fork would copy locks and CUDA contexts in whatever state they are
LIVENESS_SECONDS = 1.0  # between looks at what normally announces itself
GRACE_SECONDS = 5.0  # for a process to end by itself
SEND_FACTORY = "send the factory"


class LocalPool(WorkerPool):
    """Evaluators in spawned processes, each with its own threads and its share of the GPUs.

    GPUs are those in CUDA_VISIBLE_DEVICES, or all. With 0 GPUs per worker the workers see none. Workers end with
    the driver, however it ends, and leave Ctrl-C to it.

    Raises:
        SettingsError: if a number makes no sense, or the GPUs do not suffice.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        workers: int,
        threads: int = 1,
        gpus_per_worker: float = 0.0,
        attempts: int = 3,
        events: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(workers, threads, gpus_per_worker, attempts, events)
        self._factory = pickle.dumps(factory)
        devices = _visible_devices() if gpus_per_worker else []
        self._devices = [device_share(worker, workers, gpus_per_worker, devices) for worker in range(workers)]
        self._processes: dict[int, SpawnProcess] = {}
        self._connections: dict[int, Connection] = {}

    def _open(self) -> None:
        pass

    def _start_worker(self, worker: int) -> None:
        connection, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=_serve, args=(theirs, self._threads), name=f"evaluator-{worker}", daemon=True)
        self._connections[worker] = connection
        environment = {**thread_environment(self._threads), "CUDA_VISIBLE_DEVICES": self._devices[worker]}
        try:
            with theirs, _environment(environment):
                process.start()
        except OSError as error:
            raise WorkerError(f"evaluator {worker} could not be started: {error}") from error
        self._processes[worker] = process

    def _stop_worker(self, worker: int) -> None:
        self._processes[worker].kill()
        self._bury(worker)

    def _submit(self, worker: int, task: Labelled) -> None:
        with suppress(OSError):
            self._connections[worker].send(task)

    def _wait(self) -> list[tuple[int, Reply]]:
        owners: dict[Any, int] = {}
        for worker, process in self._processes.items():
            owners[self._connections[worker]] = owners[process.sentinel] = worker
        while True:
            # Both become readable when a process dies, unless a child of its own holds them open: hence the look.
            ready = {owners[source] for source in wait(list(owners), LIVENESS_SECONDS)} or {
                worker for worker, process in self._processes.items() if not process.is_alive()
            }
            replies = [(worker, reply) for worker in sorted(ready) if (reply := self._hear(worker)) is not None]
            if replies:
                return replies

    def _hear(self, worker: int) -> Reply | None:
        """What a worker said, or that it is gone; None if it only asked for the factory."""
        connection = self._connections[worker]
        try:
            if connection.poll():
                message = connection.recv()
                if message == SEND_FACTORY:
                    connection.send_bytes(self._factory)
                    return None
                reply: Reply = message
                if isinstance(reply, NotLoaded):
                    self._bury(worker)
                return reply
        except (EOFError, OSError):
            pass
        return Died(self._bury(worker))

    def _bury(self, worker: int) -> str:
        """Make sure that a process is gone, free what it held, and say how it ended."""
        process = self._processes.pop(worker)
        self._connections.pop(worker).close()
        process.join(GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _shut(self) -> None:
        for process in self._processes.values():
            process.kill()  # there is nothing to save, and a process with torch takes seconds to end by itself
        for process in self._processes.values():
            process.join()
            process.close()
        for connection in self._connections.values():
            connection.close()
        self._processes.clear()
        self._connections.clear()


def device_share(worker: int, workers: int, gpus_per_worker: float, devices: list[str]) -> str:
    """CUDA_VISIBLE_DEVICES of one worker: its own devices, or the one it shares with as few others as possible.

    Raises:
        SettingsError: if ``devices`` are too few for all workers.
    """
    if gpus_per_worker == 0:
        return ""
    room = gpu_room(len(devices), gpus_per_worker)
    if workers > room:
        raise SettingsError(
            f"{workers} workers with {gpus_per_worker:g} GPUs each do not fit on {len(devices)} GPUs; "
            + (f"use at most {room} workers, or a fraction of a GPU each" if room else "use a CPU or another machine")
        )
    if gpus_per_worker < 1:
        return devices[worker % len(devices)]
    count = int(gpus_per_worker)
    return ",".join(devices[worker * count : (worker + 1) * count])


def _visible_devices() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        import torch

        return [str(index) for index in range(torch.cuda.device_count())]
    devices: list[str] = []
    for device in (name.strip() for name in listed.split(",")):
        if device in ("", "-1"):  # CUDA ignores what follows an invalid entry
            break
        devices.append(device)
    return devices


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a process started here: set by itself, they would come after what its main module imports."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, threads: int) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    worker = Worker(threads)
    with connection, suppress(EOFError, OSError):  # the driver has closed the pool, or is gone
        connection.send(SEND_FACTORY)
        payload = connection.recv_bytes()
        try:
            factory: EvaluatorFactory = pickle.loads(payload)
        except Exception as error:  # a factory from a module that cannot be imported here
            connection.send(not_loaded(error))
            return
        connection.send(worker.load(factory))
        while True:
            connection.send(worker.evaluate(connection.recv()))


def _end_with_parent() -> None:
    """End this process as soon as the driver is gone, even in the middle of an evaluation.

    PR_SET_PDEATHSIG would do so when the thread that started the worker ends, which may be earlier.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child"
    # The parent id as well: a child that the driver forked holds the pipe open which is_alive looks at.
    while parent.is_alive() and os.getppid() == parent.pid:
        parent.join(LIVENESS_SECONDS)
    os._exit(1)
