"""Starting the processes of a run: here, by torchrun, by Ray Train, or not at all where a launcher did already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from longrope.exceptions import LongRopeError, SettingsError
from longrope.finetune.failure import forget_failures, raise_failure, report_failure
from longrope.finetune.world import World
from longrope.schema import STRICT

LAUNCHERS = ("auto", "none", "torchrun", "ray")
DEVICES = ("auto", "cuda", "cpu")


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Where a run is trained. None of it changes the result.

    Attributes:
        launcher: ``none`` is this process alone; ``auto`` is ``none`` for one process without DeepSpeed and where
            torchrun or the deepspeed launcher started this one, ``ray`` for several nodes, and ``torchrun`` otherwise.
        gpus: of each node; all that are visible when not given. On a CPU, processes.
        nodes: machines.
        ray_address: an existing cluster, ``auto`` or ``host:port``; RAY_ADDRESS when not given.
        max_failures: times that Ray Train starts anew after workers died.
        device: ``cuda``, ``cpu``, or ``auto`` for what this machine has.
    """

    __pydantic_config__ = STRICT

    launcher: str = "auto"
    gpus: int | None = None
    nodes: int = 1
    ray_address: str | None = None
    max_failures: int = 3
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise SettingsError(f"launcher {self.launcher!r} is not known; use {', '.join(LAUNCHERS)}")
        if self.device not in DEVICES:
            raise SettingsError(f"device {self.device!r} is not known; use {', '.join(DEVICES)}")
        for name in ("gpus", "nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; give at least 1")
        if self.max_failures < 0:
            raise SettingsError(f"max-failures is {self.max_failures}; give 0 or more")

    def choose_device(self) -> str:
        """``cuda`` or ``cpu``.

        Raises:
            SettingsError: if a GPU was asked for that is not here, or the workers' machines may differ from this one.
        """
        import torch

        here = torch.cuda.is_available()
        elsewhere = self.launcher == "ray" and (self.ray_address or os.environ.get("RAY_ADDRESS")) is not None
        if self.device == "auto":
            if elsewhere and not here:
                raise SettingsError(
                    "this machine has no GPU and the cluster may have; say --device cuda or --device cpu"
                )
            return "cuda" if here else "cpu"
        if self.device == "cuda" and not here and not elsewhere:
            raise SettingsError("device cuda was asked for, but torch sees no GPU; use --device cpu")
        return self.device

    def resolve(self, visible_gpus: int, zero: int | None = None) -> Plan:
        """Fill in what was left open.

        Args:
            visible_gpus: GPUs of this machine that torch sees.
            zero: the stage that was asked for. DeepSpeed needs a launcher for one process too.

        Raises:
            SettingsError: if the launcher cannot do what was asked for.
        """
        present = World.from_environment()
        if present.launched:
            if self.launcher not in ("auto", "none"):
                raise SettingsError(
                    f"launcher {self.launcher!r} was asked for, but this process was started by a launcher already "
                    "(RANK is set); leave --launcher away"
                )
            # torchrun and Ray Train say the first, the deepspeed launcher the second.
            local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE", "1")
            return Plan("none", present.size, int(local))
        cluster = self.ray_address or os.environ.get("RAY_ADDRESS")
        per_node = self.gpus if self.gpus is not None else max(visible_gpus, 1)
        processes = per_node * self.nodes
        launcher = self.launcher
        if launcher == "auto":
            launcher = "none" if processes == 1 and not zero else "torchrun"
            if self.nodes > 1 or self.ray_address is not None:
                launcher = "ray"
        if launcher == "none" and processes > 1 and (self.gpus is not None or self.nodes > 1):
            raise SettingsError(
                f"launcher none is one process, but {processes} were asked for; use torchrun or ray, or --gpus 1"
            )
        if launcher == "none" and zero:
            raise SettingsError(f"launcher none starts no DeepSpeed, which zero {zero} needs; leave --launcher away")
        if launcher == "torchrun" and self.nodes > 1:
            raise SettingsError(
                f"nodes is {self.nodes}, which this command cannot reach by torchrun; use --launcher ray, or start the "
                "command on every node by torchrun (finetune/README.md)"
            )
        if self.ray_address is not None and launcher != "ray":
            raise SettingsError(f"a ray address was given for launcher {launcher!r}; use --launcher ray")
        if launcher == "ray" and find_spec("ray") is None:
            raise SettingsError("launcher ray needs Ray; pip install 'longrope[finetune]'")
        if visible_gpus and launcher != "ray" and self.gpus is not None and self.gpus > visible_gpus:
            raise SettingsError(f"gpus is {self.gpus}, but this machine has {visible_gpus}")
        return Plan(launcher, 1 if launcher == "none" else processes, per_node, cluster, self.max_failures)


@dataclass(frozen=True)
class Plan:
    """How a run will be started: ``launcher`` is ``none``, ``torchrun`` or ``ray``."""

    launcher: str
    processes: int
    per_node: int = 1
    ray_address: str | None = None
    max_failures: int = 0


def launch(folder: Path, device: str, plan: Plan, *, inherited: Sequence[int] = ()) -> None:
    """Train the run in ``folder`` to its end.

    Args:
        inherited: file descriptors that stay open as long as the run's processes live.

    Raises:
        LongRopeError: what stopped it.
    """
    forget_failures(folder)
    if plan.launcher == "torchrun":
        from longrope.finetune.torchrun import run_by_torchrun

        run_by_torchrun(folder, device, plan.processes, inherited)
    elif plan.launcher == "ray":
        from longrope.finetune.ray_train import run_by_ray

        run_by_ray(folder, device, plan)
    else:
        from longrope.finetune.worker import train

        try:
            train(folder, device)
        except LongRopeError:
            raise
        except Exception as error:
            report_failure(folder, error)
    raise_failure(folder)
