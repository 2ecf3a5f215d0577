"""Where the files of configs/ are: inside the package when installed, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """The path of a file or folder of ``configs/``, such as ``deepspeed/zero3.json``."""
    inside = _PACKAGE / "configs" / name
    return inside if inside.exists() else _PACKAGE.parent / "configs" / name
