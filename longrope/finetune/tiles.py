"""A function applied to a tile of positions at a time, and computed again in the backward pass.

What the function needs for its backward pass exists for one tile only. torch.utils.checkpoint around each tile would
do that too, in two respects worse. Autograd would add up the tiles' gradients of a weight in the dtype of the weight,
and hundreds of summands in bfloat16 lose the small ones; here they are added up in float32. And inside a layer that is
itself checkpointed, the tiles would be computed a second time just to find their inputs again; here the inputs are
saved before anything is computed, so that the recomputation of the layer ends there where nothing behind needs more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from longrope.exceptions import SettingsError

TileFunction = Callable[..., torch.Tensor]


def apply_by_tiles(
    function: TileFunction, parameters: Iterable[torch.nn.Parameter], tile: int, *inputs: torch.Tensor
) -> torch.Tensor:
    """``function(*inputs)``, on ``tile`` rows of the inputs at a time.

    Args:
        function: maps rows (n, ...) of every input to rows (n, ...), or to a sum over them (a scalar). It must treat
            each row for itself, and do the same every time: nothing random.
        parameters: what the function uses besides its inputs; those that require gradients get them.
        tile: rows at a time.
        inputs: tensors of N rows each.

    Returns:
        The rows (N, ...), or the sum.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    device = inputs[0].device.type
    call = _Call(
        function=function,
        tile=tile,
        inputs=len(inputs),
        kept=_Keep.apply(torch.empty(0, requires_grad=True), *inputs).grad_fn,  # type: ignore[no-untyped-call]
        device=device,
        autocast=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
    )
    output: torch.Tensor = _Tiles.apply(call, *inputs, *trained)  # type: ignore[no-untyped-call]
    return output


@dataclass
class _Call:
    """What the backward pass has to know; ``kept`` is what holds the saved inputs."""

    function: TileFunction
    tile: int
    inputs: int
    kept: Any
    device: str
    autocast: torch.dtype | None

    def slices(self, rows: int) -> list[slice]:
        return [slice(start, min(start + self.tile, rows)) for start in range(0, rows, self.tile)]


class _Keep(torch.autograd.Function):
    """Saves tensors, through whatever hooks on saved tensors are in force, at the moment it is called."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors[1:])
        return tensors[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        raise AssertionError("its output goes nowhere")


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.call, ctx.parameters = call, tensors[call.inputs :]
        inputs = tensors[: call.inputs]
        rows = len(inputs[0])
        output = None
        for part in call.slices(rows):
            found = call.function(*(each[part] for each in inputs))
            if found.ndim == 0:
                output = found if output is None else output + found
            else:
                output = found.new_empty(rows, *found.shape[1:]) if output is None else output
                output[part] = found
        assert output is not None, "there are no rows"
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call: _Call = ctx.call
        inputs = call.kept.saved_tensors
        call.kept = None  # once used they are let go, long before the whole graph is
        needed = ctx.needs_input_grad[1 : 1 + call.inputs]
        # Weights that autocast cast without gradients, in a forward pass, must not be found in its cache.
        torch.clear_autocast_cache()
        grads = [torch.empty_like(each) if need else None for each, need in zip(inputs, needed, strict=True)]
        sums: list[torch.Tensor | None] = [None] * len(ctx.parameters)
        with torch.autocast(call.device, dtype=call.autocast, enabled=call.autocast is not None):
            for part in call.slices(len(inputs[0])):
                with torch.enable_grad():
                    parts = [
                        each[part].detach().requires_grad_(need) for each, need in zip(inputs, needed, strict=True)
                    ]
                    output = call.function(*parts)
                wanted = [each for each, need in zip(parts, needed, strict=True) if need]
                given = grad if grad.ndim == 0 else grad[part]
                found = list(torch.autograd.grad(output, [*wanted, *ctx.parameters], given, allow_unused=True))
                del output
                for each in grads:
                    if each is not None:
                        each[part] = found.pop(0)
                for index, summand in enumerate(found):
                    sums[index] = _add(sums[index], summand)
        summed = (
            each if each is None else each.to(parameter.dtype)
            for each, parameter in zip(sums, ctx.parameters, strict=True)
        )
        return (None, *grads, *summed)


def refuse_dropout(module: torch.nn.Module) -> None:
    """Raise SettingsError if the module is random: what is computed again would not be what was computed."""
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Dropout) and part.p > 0 and part.training:
            raise SettingsError(
                f"{name} drops out activations, so what is tiled would not be computed again as it was; set its "
                "dropout to 0"
            )


def gather_whole(modules: Iterable[torch.nn.Module]) -> None:
    """Let ZeRO-3, if it is on, gather all weights inside of a module when that is called, once for all of its tiles.

    Otherwise it would gather those of each linear layer for each tile, and take them away before their gradient is due.
    """
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        from deepspeed.utils import set_z3_leaf_module

        for module in modules:
            set_z3_leaf_module(module, True)


def _add(total: torch.Tensor | None, summand: torch.Tensor | None) -> torch.Tensor | None:
    """The sum, in float32 at least."""
    if summand is None:
        return total
    if total is None:
        return summand.to(torch.promote_types(summand.dtype, torch.float32), copy=True)
    return total.add_(summand)
