"""From settings to the pool they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from longrope.workers.pool import EvaluationPool, EvaluatorFactory
from longrope.workers.settings import ExecutionSettings


def make_pool(
    factory: EvaluatorFactory, execution: ExecutionSettings, on_gpu: bool, events: Callable[[str], None]
) -> EvaluationPool[Any, Any]:
    """The pool the settings name.

    Args:
        on_gpu: whether evaluators load their model on one.
        events: is told in one line what befalls the workers.
    """
    workers = execution.worker_count(on_gpu)
    options: dict[str, Any] = {
        "threads": execution.threads_per_worker,
        "gpus_per_worker": execution.gpus(on_gpu),
        "events": events,
    }
    if execution.executor == "ray":
        from longrope.workers.ray_pool import RayPool

        return RayPool(factory, workers, address=execution.ray_address, **options)
    from longrope.workers.local_pool import LocalPool

    assert workers is not None, "only a cluster is counted later"
    return LocalPool(factory, workers, **options)
