"""Longer context windows for RoPE language models, the LongRoPE way (arXiv 2402.13753).

The public names load on first use, so that ``import longrope`` stays instant and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrope.model.attach import attach, attached
    from longrope.model.extended import load
    from longrope.rope.factors import RopeFactors
    from longrope.rope.policy import FactorSchedule, FixedFactors, RopePolicy, Window, load_factors

__version__ = "0.1.0.dev0"

__all__ = [
    "FactorSchedule",
    "FixedFactors",
    "RopeFactors",
    "RopePolicy",
    "Window",
    "__version__",
    "attach",
    "attached",
    "load",
    "load_factors",
]

# Public name -> the module that defines it. A new name goes here, in __all__ and among the imports above.
_MODULES = {
    "FactorSchedule": "longrope.rope.policy",
    "FixedFactors": "longrope.rope.policy",
    "RopeFactors": "longrope.rope.factors",
    "RopePolicy": "longrope.rope.policy",
    "Window": "longrope.rope.policy",
    "attach": "longrope.model.attach",
    "attached": "longrope.model.attach",
    "load": "longrope.model.extended",
    "load_factors": "longrope.rope.policy",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
