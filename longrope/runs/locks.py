"""Locks by which one process writes a run, released by the system however that process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from pathlib import Path

from longrope.exceptions import RunExistsError


def lock_run(descriptor: int, path: Path) -> None:
    """Lock an open file of a run until the descriptor is closed, here and in every child that inherited it.

    Args:
        path: what the run is known by, for messages.

    Raises:
        RunExistsError: if another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunExistsError(
            f"{path} is being written by another process; wait for it, or choose another output folder"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        warnings.warn(f"{path} cannot be locked on this file system; start only one run there", stacklevel=2)


def is_locked(file: Path) -> bool:
    """Whether some process has the lock of a folder, asked without writing anything there.

    Args:
        file: as :class:`FolderLock` has it.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # of a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


class FolderLock:
    """The lock of a run's folder, taken by :meth:`acquire` and given back by :meth:`release` or with the process.

    Children hold it as well only where they are started with its descriptors.

    Args:
        file: of the folder; empty, it stays there.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock; the folder is made as needed.

        Nothing happens if it was taken before.

        Raises:
            RunExistsError: if another process has it.
        """
        if self._descriptor is not None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock_run(descriptor, self._file.parent)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _taken.add(self)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a child process has to inherit to hold the lock as well."""
        return () if self._descriptor is None else (self._descriptor,)

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _taken.discard(self)


_taken: set[FolderLock] = set()


def _let_go() -> None:
    """A forked child, such as one that reads data, has no part in the lock: it may live longer than its parent."""
    for lock in tuple(_taken):
        lock.release()


os.register_at_fork(after_in_child=_let_go)
