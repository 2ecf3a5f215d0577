"""Which of how many processes this one is, as the launcher has written it into the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from longrope.exceptions import SettingsError


@dataclass(frozen=True)
class World:
    """This process among all of the run.

    Attributes:
        rank: number of this process, from 0.
        local_rank: its number on this machine, which is also that of its GPU.
        size: processes in all.
        launched: whether a launcher started this process, rather than the user.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    launched: bool = False

    @classmethod
    def from_environment(cls) -> World:
        """What torchrun, the deepspeed launcher, Ray Train or a user of srun set; one process where nothing is set."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return cls(rank, int(os.environ.get("LOCAL_RANK", rank)), size, launched=True)

    def replicas(self, sp: int) -> int:
        """Copies of the model that work on different segments, each on ``sp`` processes.

        Raises:
            SettingsError: if the processes cannot be grouped so.
        """
        if self.size % sp:
            raise SettingsError(
                f"sp is {sp}, but there are {self.size} processes; choose an sp that divides the number of processes"
            )
        return self.size // sp

    def accumulation(self, global_batch: int, micro_batch: int, sp: int) -> int:
        """Micro batches of each process in an optimizer step.

        Raises:
            SettingsError: if the global batch cannot be shared equally.
        """
        replicas = self.replicas(sp)
        if global_batch % (replicas * micro_batch):
            shards = f" of {sp} processes" if sp > 1 else ""
            raise SettingsError(
                f"global-batch is {global_batch} segments, which {replicas} replicas{shards} with micro-batch "
                f"{micro_batch} cannot share; give a multiple of {replicas * micro_batch}"
            )
        return global_batch // (replicas * micro_batch)
