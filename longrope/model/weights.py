"""Weights as they lie in the folder of a model: which files, how many numbers, a short name of their content."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from longrope.exceptions import UnsupportedModelError

_CHUNK = 1 << 16
_CHUNKS = 64


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, without those that hold the same in the form of other programs."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))


def count_numbers(folder: Path) -> int:
    """Numbers of all tensors of a model together.

    Raises:
        SafetensorError: if a file cannot be read.
    """
    from safetensors import safe_open

    found = 0
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # it has no iterator
            found += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return found


def fingerprint(folder: Path) -> str:
    """A short name of a model's weights and RoPE, equal for equal content wherever it lies.

    Every weight file counts with its size and up to 64 chunks of 64 KiB spread over it: enough to tell models and
    checkpoints apart without reading hundreds of gigabytes.

    Raises:
        UnsupportedModelError: if there are no safetensors files.
    """
    weights = weight_files(folder)
    if not weights:
        raise UnsupportedModelError(f"{folder} holds no *.safetensors weights; convert the model to safetensors first")
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    digest.update(json.dumps(config, sort_keys=True).encode())
    schedule = folder / "longrope.json"
    if schedule.exists():
        digest.update(schedule.read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as stream:
            for offset in sorted({size * k // _CHUNKS for k in range(_CHUNKS)} | {max(size - _CHUNK, 0)}):
                stream.seek(offset)
                digest.update(stream.read(_CHUNK))
    return digest.hexdigest()[:16]
