"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write ``text`` in UTF-8 beside ``path`` under a temporary name, then move it into place."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: str | Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` under a temporary name, then move it into place."""
    with whole_file(path) as stream:
        stream.write(data)


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write beside ``path``, which becomes ``path`` at the end of the block, and nothing after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        let_others_read(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk says nothing of it
        raise


def let_others_read(path: str | Path) -> None:
    """Give a file the permissions that a new file has here, which temporary files and those of safetensors lack."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
