"""A module's forward replaced on the instance, and put back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch


class ReplacedForward:
    """``forward(original, *args, **kwargs)`` in place of ``module.forward``, until :meth:`remove`.

    Others may wrap the replacement meanwhile (accelerate does so for mixed precision). It is then left inside their
    wrapper and only hands on to the original.
    """

    def __init__(self, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        self._previous = module.__dict__.get("forward")
        self._on = True
        original = module.forward

        def replacement(_: Any, *args: Any, **kwargs: Any) -> Any:
            return forward(original, *args, **kwargs) if self._on else original(*args, **kwargs)

        # What reads signatures (Trainer, PEFT) finds the original one. No __wrapped__ leads there: accelerate follows
        # it when it unwraps a model, and would put the original in place of this.
        signature = inspect.signature(original)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [p.replace(kind=p.kind) for p in signature.parameters.values()]
        setattr(replacement, "__signature__", signature.replace(parameters=[this, *parameters]))  # noqa: B010
        self._replacement = MethodType(replacement, module)
        setattr(module, "forward", self._replacement)  # noqa: B010

    def remove(self) -> None:
        """Give the module its own forward back; nothing happens where that was done already."""
        self._on = False
        if self._module.__dict__.get("forward") is not self._replacement:
            return
        if self._previous is None:
            del self._module.__dict__["forward"]
        else:
            self._module.__dict__["forward"] = self._previous
