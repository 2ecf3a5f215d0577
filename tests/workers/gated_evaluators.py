"""Evaluators that tell a test where they are and wait for its word; whatever happens in between is up to the test."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from types import TracebackType

TIMEOUT_SECONDS = 120.0  # after which the test fails; nothing waits that long otherwise


@dataclass(frozen=True)
class Numbered:
    """A task."""

    number: int

    @property
    def label(self) -> str:
        return f"task {self.number}"


@dataclass(frozen=True)
class GatedEvaluator:
    """Its own factory; the result of a task is the Ray node on which it was done."""

    port: int

    def __call__(self) -> GatedEvaluator:
        return self

    def evaluate(self, task: Numbered) -> str:
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(f"{task.number} {node}\n".encode())
            connection.recv(1)
        return node


class Gate:
    """The test's end. Leaving it lets everybody pass, and fails whoever comes later."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.settimeout(TIMEOUT_SECONDS)
        self._connections: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def begun(self) -> Evaluation:
        """The next evaluation to begin; waits for it."""
        connection, _ = self._listener.accept()
        connection.settimeout(TIMEOUT_SECONDS)
        self._connections.append(connection)
        number, node = connection.makefile().readline().split()
        return Evaluation(int(number), node, connection)

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()


@dataclass(frozen=True)
class Evaluation:
    number: int
    node: str
    connection: socket.socket

    def go_on(self) -> None:
        """Let it end."""
        self.connection.sendall(b"!")

    def wait_for_its_death(self) -> None:
        assert self.connection.recv(1) == b""
