"""Folders that are written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longrope.exceptions import RunExistsError

_MARK = "longrope-"


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside ``output`` that takes its name when the block ends, and goes when the block fails.

    A process that is killed leaves the hidden folder behind; the next export to the same output removes it.

    Raises:
        RunExistsError: if ``output`` is a file, or a folder that is not empty.
    """
    refuse_occupied(output)
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(output)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.{_MARK}"))
    lock = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders, and nothing is removed there
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with this process, however that ends
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o777 & ~mask)
        yield temporary
        refuse_occupied(output)
        if output.exists():
            output.rmdir()
        os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def refuse_occupied(output: Path) -> None:
    """Raise RunExistsError if ``output`` is a file, or a folder that is not empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunExistsError(f"output {output} exists and is not empty; choose another folder")


def _remove_abandoned(output: Path) -> None:
    """Remove the hidden folders of exports to ``output`` whose process lives no more."""
    for path in output.parent.iterdir():
        if not path.name.startswith(f".{output.name}.{_MARK}") or path.is_symlink() or not path.is_dir():
            continue
        folder = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:  # its process is at work
            pass
        finally:
            os.close(folder)
