"""What a model answered to the requests of one task, kept so that a run that was killed asks nothing twice.

Stands in for the request cache of lm-evaluation-harness, whose database holds pickles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from longrope.exceptions import RunExistsError
from longrope.runs.journal import Journal


class Responses:
    """Responses by request; has the interface of the harness's own cache hook.

    Args:
        path: the file that keeps them; where it is None, or another worker writes it, they are kept in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._found: dict[str, Any] = {}
        self._truncated: set[str] = set()
        self._journal: Journal | None = None
        if path is None:
            return
        try:
            start = Journal.resume if path.exists() else Journal.create
            self._journal = start(path, {"kind": "responses"})
        except RunExistsError:
            return
        for event in self._journal.events:
            self._found[event["request"]] = event["response"]
            if event["truncated"]:
                self._truncated.add(event["request"])

    def get(self, kind: str, arguments: Iterable[Any]) -> Any | None:
        """The response to a request, None if there is none yet."""
        return self._found.get(_key(kind, arguments))

    def mark_truncated(self, kind: str, arguments: Iterable[Any]) -> None:
        """Remember, before its response comes, that a request was too long and was cut."""
        self._truncated.add(_key(kind, arguments))

    def is_truncated(self, kind: str, arguments: Iterable[Any]) -> bool:
        """Whether a request was cut."""
        return _key(kind, arguments) in self._truncated

    def add_partial(self, kind: str, arguments: Iterable[Any], response: Any) -> None:
        """Keep a response; the harness calls it by this name."""
        key = _key(kind, arguments)
        self._found[key] = response
        if self._journal is not None:
            event = {"kind": "response", "request": key, "response": response, "truncated": key in self._truncated}
            self._journal.append(event)

    def close(self) -> None:
        """Let others write the file."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Responses:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _key(kind: str, arguments: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps([kind, *arguments], sort_keys=True).encode()).hexdigest()
