"""Scripts that lie outside the package, as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def checkout_script(name: str) -> Path:
    """A script by its path from the root of the checkout; the calling module is skipped where there is none."""
    path = Path(__file__).parents[1] / name
    if not path.exists():
        pytest.skip(f"{name} is part of a checkout only", allow_module_level=True)
    return path


def load_script(path: Path) -> ModuleType:
    """What a script defines; it is not run."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
