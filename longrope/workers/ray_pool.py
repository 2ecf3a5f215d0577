"""RayPool: evaluators in Ray actors, on this machine or on a cluster."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from longrope.exceptions import SettingsError, WorkerError
from longrope.workers.dispatch import WorkerPool
from longrope.workers.pool import EvaluatorFactory, Labelled
from longrope.workers.ray_cluster import connect
from longrope.workers.room import gpu_room
from longrope.workers.worker import Died, NotLoaded, Raised, Reply, Worker, one_line, thread_environment

PATIENCE_SECONDS = 300.0  # without any node for an evaluator, after which a run ends that had some before
BUSY_SECONDS = 20.0  # for the processes of all evaluators to start; more means that others use the cluster
LOOK_SECONDS = 10.0  # between looks at the cluster while nothing happens


class RayPool(WorkerPool):
    """Evaluators in Ray actors, each with ``threads`` CPUs and ``gpus_per_worker`` GPUs reserved.

    Connects to the cluster at ``address`` ("auto", "host:port", "ray://host:port") or in RAY_ADDRESS; longrope, the
    model and whatever the factory imports must be installed on every node of it. Otherwise uses the Ray that this
    process has initialised, or starts one here that ends with the pool. Evaluators that find no room wait for it:
    nodes that join later are used. A cluster with token authentication needs RAY_AUTH_MODE=token set here.

    Args:
        workers: evaluators; None for as many as the cluster has room for when the pool starts.

    Raises:
        SettingsError: if a number makes no sense, or Ray is not installed.
        WorkerError: on start, if the cluster cannot be reached, or no node has room for even one evaluator.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        workers: int | None,
        threads: int = 1,
        gpus_per_worker: float = 0.0,
        address: str | None = None,
        attempts: int = 3,
        events: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(1 if workers is None else workers, threads, gpus_per_worker, attempts, events)
        self._fill_the_cluster = workers is None
        try:
            import ray
        except ImportError:
            raise SettingsError(
                "Ray is not installed; run `pip install longrope[search]`, or use the local executor"
            ) from None
        self._ray: Any = ray
        self._factory = factory
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._initialised_here = False
        self._factory_reference: Any = None
        self._actor_class: Any = None
        self._actors: dict[int, Any] = {}
        self._pending: dict[int, Any] = {}  # references of what workers are doing, including loading
        self._running_references: dict[int, Any] = {}  # come true as soon as a worker's process runs
        self._look_for_others_at = math.inf
        self._no_room_since: float | None = None

    def _open(self) -> None:
        if not self._ray.is_initialized():
            # As many CPUs as the evaluators asked for, be they more or fewer than the machine has, as LocalPool does.
            cpus = None if self._fill_the_cluster else self.workers * self._threads
            connect(self._address, cpus, log_to_driver=False)
            self._initialised_here = True
        room = self._room()
        if self._fill_the_cluster:
            self.workers = max(room, 1)
        if room < self.workers:
            message = (
                f"{self.workers} evaluators with {self._threads} CPUs and {self._gpus_per_worker:g} GPUs each asked "
                f"for, but Ray has room for {room} ({self._resources()})"
            )
            if room == 0:
                raise WorkerError(f"{message}; add nodes, or ask for less per evaluator")
            self._tell(f"{message}: working with those, until nodes join")
        environment = thread_environment(self._threads)
        if self._gpus_per_worker == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it alone for 0 GPUs; LocalPool hides them too
        if self._initialised_here and self._address is None:
            # Workers on this machine import what the driver can, also from a source checkout.
            environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._actor_class = self._ray.remote(Worker).options(
            num_cpus=self._threads,
            num_gpus=self._gpus_per_worker,
            max_concurrency=1,
            # Attempts are counted and workers replaced here: Ray must not do either behind our back.
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": environment},
        )
        self._factory_reference = self._ray.put(self._factory)
        self._look_for_others_at = time.monotonic() + BUSY_SECONDS

    def _start_worker(self, worker: int) -> None:
        actor = self._actors[worker] = self._actor_class.remote(self._threads)
        self._running_references[worker] = actor.__ray_ready__.remote()
        self._pending[worker] = actor.load.remote(self._factory_reference)

    def _submit(self, worker: int, task: Labelled) -> None:
        self._pending[worker] = self._actors[worker].evaluate.remote(task)

    def _wait(self) -> list[tuple[int, Reply]]:
        self._look_for_others()
        owners = {reference: worker for worker, reference in self._pending.items()}
        ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=LOOK_SECONDS)
        if ready:
            self._no_room_since = None
            return [(owners[ready[0]], self._hear(owners[ready[0]]))]
        self._check_room()
        return []

    def _hear(self, worker: int) -> Reply:
        """The answer of a worker that is done, or that it is gone."""
        try:
            reply: Reply = self._ray.get(self._pending.pop(worker))
        except self._ray.exceptions.RayTaskError as error:
            # Outside of Worker's own care, so in what surrounds it: unpickling the factory or pickling the score.
            reason = one_line(error.cause) if isinstance(error.cause, Exception) else one_line(error)
            reply = Raised(reason, str(error)) if self._slots[worker].ready else NotLoaded(reason, trace=str(error))
        except self._ray.exceptions.ActorUnavailableError:
            # Its node is gone, mostly. Should it live on out of reach, it is ended: another does its task.
            reply = Died("the connection to it is lost")
        except self._ray.exceptions.RayError as error:
            reply = Died(_cause_of_death(error))
        if isinstance(reply, Died | NotLoaded):
            self._stop_worker(worker)
        return reply

    def _stop_worker(self, worker: int) -> None:
        self._ray.kill(self._actors.pop(worker))

    def _look_for_others(self) -> None:
        """Say, once, that evaluators wait for a cluster that is in use; for ``_room`` counts it as empty."""
        if time.monotonic() < self._look_for_others_at:
            return
        self._look_for_others_at = math.inf
        references = list(self._running_references.values())
        running, waiting = self._ray.wait(references, num_returns=len(references), timeout=0)
        if waiting:
            self._tell(f"waiting for room on the cluster: {len(running)} of {len(references)} evaluators have started")

    def _check_room(self) -> None:
        """Wait for room only so long when no evaluator is left: nodes may come back, or not."""
        if any(slot.ready for slot in self._slots) or self._room():
            self._no_room_since = None
            return
        now = time.monotonic()
        if self._no_room_since is None:
            self._no_room_since = now
            self._tell(f"no node has room for an evaluator any more ({self._resources()}), waiting for nodes")
        elif now - self._no_room_since > PATIENCE_SECONDS:
            raise WorkerError(
                f"no node has had room for an evaluator for {PATIENCE_SECONDS:.0f} s ({self._resources()}); "
                "add nodes and resume"
            )

    def _room(self) -> int:
        """How many evaluators the nodes would hold if they were empty."""
        room = 0
        for resources in (node["Resources"] for node in self._ray.nodes() if node["Alive"]):
            here = int(resources.get("CPU", 0)) // self._threads
            if self._gpus_per_worker:
                here = min(here, gpu_room(int(resources.get("GPU", 0)), self._gpus_per_worker))
            room += here
        return room

    def _resources(self) -> str:
        resources = self._ray.cluster_resources()
        return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs in all"

    def _shut(self) -> None:
        if self._ray.is_initialized():
            for worker in list(self._actors):
                self._stop_worker(worker)
        self._pending.clear()
        self._running_references.clear()
        self._factory_reference = self._actor_class = None
        if self._initialised_here:
            self._ray.shutdown()


def _cause_of_death(error: Exception) -> str:
    """What Ray says of a dead actor, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if line.startswith("The actor is dead because "):
            return line.removeprefix("The actor is dead because ").partition(". ")[0]
    return one_line(error)
