"""Processes of a cluster, by Ray Train, which also starts them anew when some have died."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

from longrope.exceptions import InvalidInputError, RunFailedError
from longrope.finetune.failure import raise_failure, report_failure
from longrope.finetune.launch import Plan
from longrope.finetune.meeting import LONGEST_WAIT
from longrope.workers.ray_cluster import connect
from longrope.workers.room import usable_cpus


def run_by_ray(folder: Path, device: str, plan: Plan) -> None:
    """Train the run in ``folder``, which every node has to see, by the workers of a Ray cluster.

    Ray launches and watches; checkpoints are Trainer's own. Workers that start again go on from the newest one.

    Raises:
        LongRopeError: what stopped it.
    """
    import ray
    import ray.train.torch

    train: Any = ray.train  # its two generations have different signatures
    folder = folder.resolve()
    here = plan.ray_address is None
    cpus = max(usable_cpus() // plan.per_node, 1) if here else 1
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cpus))}
    if device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    if here:  # workers on this machine import what the driver can, also from a source checkout
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    started = not ray.is_initialized()
    if started:
        connect(plan.ray_address, plan.processes + 1)  # Ray's controller needs a CPU beside the workers
    trainer = train.torch.TorchTrainer(
        _work,
        torch_config=train.torch.TorchConfig(timeout_s=int(LONGEST_WAIT.total_seconds())),
        train_loop_config={"folder": str(folder), "device": device},
        scaling_config=train.ScalingConfig(
            num_workers=plan.processes,
            use_gpu=device == "cuda",
            resources_per_worker={"CPU": 1, **({"GPU": 1} if device == "cuda" else {})},
        ),
        run_config=train.RunConfig(
            name=f"ray-{uuid.uuid4().hex[:8]}",  # Ray would go on with its own record of an earlier one
            storage_path=str(folder / "logs"),
            failure_config=train.FailureConfig(max_failures=plan.max_failures),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise_failure(folder)
        reason = " ".join(str(error).split())[:300]
        raise RunFailedError(f"Ray Train gave up: {reason}; go on by --resume") from error
    finally:
        if started:
            ray.shutdown()


def _work(config: dict[str, Any]) -> None:
    """One worker; Ray Train has set its rank, and started the process group."""
    from longrope.finetune.worker import train

    folder = Path(config["folder"])
    raise_failure(folder)  # of an earlier attempt: what the user got wrong, which no further attempt would mend
    try:
        train(folder, config["device"])
    except InvalidInputError as error:
        report_failure(folder, error)
        raise  # or the other processes would wait for this one
