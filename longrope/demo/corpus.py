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
LONG_PERCENT = 24
"""Of the held-out modules: the longest ones, of which every other one is to judge by."""

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


@dataclass(frozen=True)
class Texts:
    """Files of modules, one ``{"name", "text"}`` a line.

    Attributes:
        training: modules that the embedded model was trained on.
        held_out: all others, which are
        search: those to choose factors by, and
        evaluation: those to judge by: every other one of the longest, of which both need some.
    """

    training: Path
    held_out: Path
    search: Path
    evaluation: Path


def write_texts(folder: Path) -> Texts:
    """Write the modules of this Python's standard library into ``folder``."""
    modules = list(standard_library())
    held_out = [module for module in modules if module.held_out]
    by_length = sorted(held_out, key=lambda module: (-len(module.text), module.path))
    judged = {module.path for module in by_length[: len(held_out) * LONG_PERCENT // 100 : 2]}
    parts = {
        "training": [module for module in modules if not module.held_out],
        "held_out": held_out,
        "search": [module for module in held_out if module.path not in judged],
        "evaluation": [module for module in held_out if module.path in judged],
    }
    files = {name: folder / f"{name.replace('_', '-')}.jsonl" for name in parts}
    for name, chosen in parts.items():
        lines = (json.dumps({"name": each.path, "text": each.text}) + "\n" for each in chosen)
        write_text_atomically(files[name], "".join(lines))
    return Texts(**files)


def write_held_out(path: Path) -> Path:
    """Write the held-out modules to one JSONL file; returns ``path``."""
    modules = (module for module in standard_library() if module.held_out)
    write_text_atomically(path, "".join(json.dumps({"name": each.path, "text": each.text}) + "\n" for each in modules))
    return path
