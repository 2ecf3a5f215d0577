"""Where the work of a run is done; every name is also an option of the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass

from longrope.exceptions import SettingsError
from longrope.schema import STRICT
from longrope.workers.room import gpu_room, usable_cpus

EXECUTORS = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How and where evaluations run. None of it changes the result, except what is loaded: dtype, device, attention.

    Attributes:
        workers: evaluators; one a GPU, or one for every ``threads_per_worker`` CPU cores, when not given.
        threads_per_worker: CPU threads of each evaluator; fixed, because it can change the last bits of a score.
        gpus_per_worker: whole, several (the model is spread over them) or a fraction (evaluators share one).
        sp: processes, each with the model on a GPU of its own, that score every long sample together. Can change the
            last bits of a score.
        batch: candidates scored in one forward pass of a search or readjustment; measured before it on a GPU, and 1 on
            a CPU, when not given. Can change the last bits of a score, so the journal keeps the number.
        executor: ``local`` or ``ray``.
        ray_address: an existing cluster, ``auto`` or ``ray://host:port``; RAY_ADDRESS when not given.
    """

    __pydantic_config__ = STRICT

    workers: int | None = None
    threads_per_worker: int = 1
    gpus_per_worker: float | None = None
    sp: int = 1
    batch: int | None = None
    executor: str = "local"
    ray_address: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "sdpa"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        from longrope.model.load import check_names  # torch, which the command line starts without

        check_names(self.dtype, self.device, self.attention)
        if self.executor not in EXECUTORS:
            raise SettingsError(f"executor {self.executor!r} is not known; use {' or '.join(EXECUTORS)}")
        if self.ray_address is not None and self.executor != "ray":
            raise SettingsError("a ray address was given for the local executor; add --executor ray")
        if self.executor == "ray" and self.ray_address is None:  # as Ray itself would
            object.__setattr__(self, "ray_address", os.environ.get("RAY_ADDRESS") or None)
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"workers is {self.workers}; give at least 1")
        if self.threads_per_worker < 1:
            raise SettingsError(f"threads per worker is {self.threads_per_worker}; give at least 1")
        if self.sp < 1:
            raise SettingsError(f"sp is {self.sp}; give at least 1")
        if self.sp > 1 and self.gpus_per_worker not in (None, self.sp):
            raise SettingsError(
                f"sp is {self.sp} and GPUs per worker {self.gpus_per_worker:g}; each process has one GPU, so leave the "
                "GPUs per worker away"
            )
        if self.batch is not None and self.batch < 1:
            raise SettingsError(f"batch is {self.batch}; give at least 1")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise SettingsError(f"GPUs per worker is {self.gpus_per_worker}; give 0 or more")

    def gpus(self, on_gpu: bool) -> float:
        """GPUs of each worker, given whether the model is loaded on one."""
        return (float(self.sp) if self.gpus_per_worker is None else self.gpus_per_worker) if on_gpu else 0.0

    def check_gpus(self, there: int) -> None:
        """Raise SettingsError where a worker of this machine is to have more GPUs than there are."""
        wanted = self.gpus(True)
        if self.executor == "local" and wanted > there:
            name = "sp" if self.sp > 1 else "GPUs per worker"
            instead = f"{there}; give at most that" if there else "no GPU; leave it away, or use another machine"
            raise SettingsError(f"{name} is {wanted:g}, but this machine has {instead}")

    @property
    def gpus_per_model(self) -> float:
        """GPUs that the layers of a model are spread over, or its share of one."""
        return 1.0 if self.gpus_per_worker is None or self.sp > 1 else self.gpus_per_worker

    @property
    def note_on_layers(self) -> str | None:
        """What is to be said where the layers of a model are spread over several GPUs."""
        gpus = f"{self.gpus_per_model:g} GPUs"
        if self.gpus_per_model <= 1:
            return None
        return f"the layers of a model on {gpus} work one after the other, so that {gpus} are as fast as one"

    def worker_count(self, on_gpu: bool) -> int | None:
        """Workers to start; where the user named no number, what this machine has room for, or None on a cluster."""
        if self.workers is not None:
            return self.workers
        return None if self.ray_address is not None else self._local_count(self.gpus(on_gpu))

    def _local_count(self, share: float) -> int:
        if share:
            import torch

            return max(gpu_room(torch.cuda.device_count(), share), 1)
        return max(usable_cpus() // (self.threads_per_worker * self.sp), 1)
