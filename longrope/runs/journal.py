"""Journal: an append-only file of JSON lines from which a killed search is resumed.

The first line is a header with the run's settings, each further line one event. Lines reach the operating system
before ``append`` returns, so killing the process loses nothing, and at most the last line is torn (by a full disk
or a power cut).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from longrope.exceptions import InvalidInputError, OtherRunError, RunExistsError, RunFailedError
from longrope.runs.locks import lock_run

SCHEMA_VERSION = 1
HEADER_START = b'{"kind": "header"'
DIFFERENCES_SHOWN = 8


class Journal:
    """An open journal, which only this process may write.

    Made by ``create`` or ``resume``, closed by ``close`` or as a context manager. A forked child shares the lock
    and holds it after this process is gone: start workers by spawn.

    Attributes:
        path: of the file.
        settings: of the run, as in the header.
    """

    def __init__(self, path: Path, settings: dict[str, Any], events: list[dict[str, Any]], descriptor: int) -> None:
        self.path = path
        self.settings = settings
        self._events = events
        self._descriptor: int | None = descriptor

    @classmethod
    def create(cls, path: str | Path, settings: Mapping[str, Any]) -> Journal:
        """Start the journal of a new run; folders are made as needed.

        Raises:
            RunExistsError: if there is a file at ``path``.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            raise RunExistsError(f"{path} holds another run; resume it, or choose another output folder") from None
        return cls._opened(path, settings, descriptor)

    @classmethod
    def resume(cls, path: str | Path, settings: Mapping[str, Any]) -> Journal:
        """Go on with the journal at ``path``; a torn last line is cut off the file.

        The file is not touched when it is refused.

        Raises:
            OtherRunError: if the run there has other settings, each named in the message.
            RunExistsError: if it is still going on.
            InvalidInputError: if there is no journal, or it has an invalid line that is not the last.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            raise InvalidInputError(f"{path} does not exist, so there is no run to resume; start a new one") from None
        return cls._opened(path, settings, descriptor)

    @classmethod
    def _opened(cls, path: Path, settings: Mapping[str, Any], descriptor: int) -> Journal:
        """The journal in the file just opened, which is empty if it is new or was killed before its first line."""
        try:
            lock_run(descriptor, path)
            present: dict[str, Any] = json.loads(_line(settings))
            past, events, valid = _parse(path.read_bytes(), path)
            if past is not None:
                differences = list(_differences(past, present))
                if differences:
                    shown = differences[:DIFFERENCES_SHOWN]
                    if len(differences) > len(shown):
                        shown.append(f"and {len(differences) - len(shown)} more")
                    why = "; ".join(shown)
                    raise OtherRunError(
                        f"{path} holds a run with other settings ({why}); "
                        "resume it with its own, or choose another output folder",
                        why,
                    )
            os.ftruncate(descriptor, valid)
            journal = cls(path, present, events, descriptor)
            if past is None:
                journal._write(_line({"kind": "header", "schema_version": SCHEMA_VERSION, "settings": present}))
            return journal
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events in the file, as read back, in order."""
        return list(self._events)

    def append(self, event: Mapping[str, Any]) -> None:
        """Add an event. Floats are read back exactly; nan and infinities are refused, for JSON has none.

        Raises:
            RunFailedError: if the line cannot be written; the file is then as it was before.
        """
        assert event.get("kind") != "header", "a journal has one header, its first line"
        line = _line(event)
        self._write(line)
        self._events.append(json.loads(line))

    def sync(self) -> None:
        """Wait until everything appended is on the disk, so that a power cut cannot lose it."""
        os.fsync(self._open_descriptor())

    def close(self) -> None:
        """Close the file and let others write it; closing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_descriptor(self) -> int:
        assert self._descriptor is not None, f"the journal {self.path} is closed"
        return self._descriptor

    def _write(self, line: bytes) -> None:
        descriptor = self._open_descriptor()
        size = os.fstat(descriptor).st_size
        try:
            # One write of the whole line; the kernel writes less only when the disk fills up.
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunFailedError(f"cannot write {self.path}: {error.strerror}; make room and resume the run") from error


def read_journal(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and events of the journal at ``path``, also while it is being written; a torn last line is ignored.

    Raises:
        InvalidInputError: if the file is not a journal, or has an invalid line that is not the last.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a file; give the journal of a run")
    settings, events, _ = _parse(path.read_bytes(), path)
    if settings is None:
        raise InvalidInputError(f"{path} is empty; the run it belongs to was never started")
    return settings, events


def _line(value: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(dict(value), allow_nan=False).encode() + b"\n"
    except ValueError as error:
        raise AssertionError(f"not an event that JSON can hold ({error}): {value}") from error


def _parse(data: bytes, path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]], int]:
    """Settings (None if there is no header yet), events, and how many bytes of ``data`` are whole valid lines."""
    if not (data.startswith(HEADER_START) or HEADER_START.startswith(data)):
        raise InvalidInputError(f"{path} is not the journal of a run; choose another output folder")
    lines = data.split(b"\n")
    valid, records = 0, []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines) - 1 and not lines[-1]:
                break
            raise InvalidInputError(
                f"{path}, line {number}: not a valid event ({error}); the file was changed or damaged, start a new run"
            ) from None
        records.append(record)
        valid += len(line) + 1
    if not records:
        return None, [], 0
    header = records[0]
    if header.get("schema_version") != SCHEMA_VERSION or not isinstance(header.get("settings"), dict):
        raise InvalidInputError(
            f"{path}: schema_version is {header.get('schema_version')!r}, this longrope reads {SCHEMA_VERSION}; "
            "use the longrope that wrote it, or a newer one"
        )
    return header["settings"], records[1:], valid


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """Where two settings differ, as ``search.seed: then 1, now 2``."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            inner = f"{name}.{key}" if name else key
            if key not in now:
                yield f"{inner}: then {json.dumps(then[key])}, now absent"
            elif key not in then:
                yield f"{inner}: then absent, now {json.dumps(now[key])}"
            else:
                yield from _differences(then[key], now[key], inner)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _differences(old, new, f"{name}.{index}")
    elif then != now:
        yield f"{name}: then {json.dumps(then)}, now {json.dumps(now)}"
