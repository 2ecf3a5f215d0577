"""Connects to a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import socket
import traceback
from logging import ERROR
from typing import Any

from longrope.exceptions import WorkerError
from longrope.workers.worker import one_line

OBJECT_STORE_BYTES = 200_000_000  # of a Ray started here; little goes through it, and what is larger spills to disk
KNOCK_SECONDS = 10.0  # for a cluster to accept a connection
START_ATTEMPTS = 3  # on this machine; where others keep it busy, Ray's own 30 seconds to start are sometimes too few


def connect(address: str | None, cpus: int | None, **options: Any) -> None:
    """Initialise Ray in this process.

    Args:
        address: "auto", "host:port" or "ray://host:port" of a cluster; None to start one here, never to join one that
            happens to run here.
        cpus: of a cluster started here; None for the machine's. They are only a count, and may be more than it has.
        options: of ray.init.

    Raises:
        WorkerError: if Ray cannot be reached or started.
    """
    import ray

    try:
        if address is not None:
            _knock(address)
            ray.init(address=address, logging_level=ERROR, **options)
        else:
            _start(cpus, options)
    except Exception as error:  # Ray raises anything here, also plain Exception
        where = f"reach Ray at {address}" if address is not None else "start Ray"
        # Ray hides this behind a plain ConnectionError; with an explicit address it uses no token unless told to.
        unknown = "AuthenticationError" in "".join(traceback.format_exception(error))
        hint = "; the cluster asks for a token, set RAY_AUTH_MODE=token" if unknown else ""
        raise WorkerError(f"cannot {where}: {one_line(error)}{hint}") from error


def _start(cpus: int | None, options: dict[str, Any]) -> None:
    import ray

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=ERROR,
                **options,
            )
            return
        except Exception:
            ray.shutdown()  # whatever did start
            if attempt == START_ATTEMPTS:
                raise


def _knock(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
