"""Packages that share their name with a public verb: ``longrope.search(...)`` runs what ``longrope.search`` is about.

Python binds a package to its parent's attribute when it is first imported, whatever stood there, so a function of that
name would be lost as soon as somebody imports a module of the package.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        verb = self.__name__.rpartition(".")[2]
        return getattr(import_module(self.__dict__["_VERB"]), verb)(*arguments, **options)


def make_callable(package: str, module: str) -> None:
    """Let calling the package call the function of its name in ``module``.

    Args:
        package: ``__name__`` of the package that is being imported.
    """
    own = sys.modules[package]
    own.__dict__["_VERB"] = module
    own.__class__ = _CallablePackage
