"""The text the embedded model lives on: the source of Python's own standard library.

Every machine that runs Python has this text, so training, searching and measuring need no download. Modules
are split into a training and a held-out share by a stable hash of their path, which is the same on every
machine and Python version. The text of a module does differ between Python versions, so results name the
version they were made with.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from longrope.files import write_text_atomically

HELD_OUT_PERCENT = 25

# Tests, installed packages, and modules that are generated tables rather than written text.
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
)
EXCLUDED_MODULES = frozenset({"html/entities.py", "msilib/schema.py", "msilib/sequence.py", "lib2to3/pgen2/grammar.py"})
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-", "lib-dynload")


@dataclass(frozen=True)
class Module:
    """One standard-library module: its path relative to the library's root, and its text."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        return is_held_out(self.path)


def is_held_out(path: str) -> bool:
    """Whether the module at ``path`` (POSIX, relative to the library's root) is kept out of training."""
    digest = hashlib.sha256(path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def _excluded(path: PurePosixPath) -> bool:
    return (
        str(path) in EXCLUDED_MODULES
        or any(part in EXCLUDED_FOLDERS for part in path.parts)
        or any(part.startswith(EXCLUDED_PREFIXES) for part in path.parts)
    )


def standard_library(root: Path | None = None) -> Iterator[Module]:
    """All modules of the running Python's standard library, ordered by path.

    Args:
        root: another library folder to read instead of the running interpreter's.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    paths = {PurePosixPath(file.relative_to(root).as_posix()): file for file in root.rglob("*.py")}
    for path in sorted(paths):
        if _excluded(path):
            continue
        try:
            with tokenize.open(paths[path]) as stream:
                text = stream.read()
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield Module(str(path), text)


def python_version() -> str:
    """The version that decides what the corpus says, for example ``3.11.7``."""
    return platform.python_version()


def write_held_out(path: Path) -> Path:
    """Write the held-out modules to a JSONL file, one ``{"name", "text"}`` a line; returns ``path``."""
    return _write(path, held_out=True)


def write_training(path: Path) -> Path:
    """Write the modules that the embedded model was trained on, in the same form."""
    return _write(path, held_out=False)


def _write(path: Path, held_out: bool) -> Path:
    modules = (module for module in standard_library() if module.held_out == held_out)
    write_text_atomically(path, "".join(json.dumps({"name": each.path, "text": each.text}) + "\n" for each in modules))
    return path
