"""Keep only each layer's input, on the GPU or in the memory of the host, and compute the layer again when needed.

transformers has the mechanism: its layers call a function that a model is given. From 5.23 on it can offload as well,
with copies that the GPU waits for; here they run beside the computation, for every version alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


class CheckpointedActivations:
    """Activation checkpointing in force on a model; made by :func:`checkpoint_activations`."""

    def __init__(self, model: Any, offload: bool = False) -> None:
        self._model = model
        function: Callable[..., Any] = partial(checkpoint, use_reentrant=False)
        model._set_gradient_checkpointing(
            enable=True,
            gradient_checkpointing_func=partial(_offloaded, function, HostMemory()) if offload else function,
        )
        # A frozen embedding gives hidden states without gradients. ZeRO-3 lets go of a module's weights when the
        # gradient of the module's input is there, so there has to be one.
        model.enable_input_require_grads()
        self._on = True

    def remove(self) -> None:
        """Let the model keep its activations again; nothing happens where that was done already."""
        if self._on:
            self._on = False
            self._model._set_gradient_checkpointing(enable=False)
            self._model.disable_input_require_grads()


class HostMemory:
    """Hooks that hold saved tensors in pinned host memory; tensors of a CPU stay where they are."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[torch.device, torch.Tensor]:
        """Start copying ``tensor`` to the host, beside what the GPU computes meanwhile."""
        if tensor.device.type == "cpu":
            return tensor
        if tensor.device.type != "cuda":
            return tensor.device, tensor.cpu()
        stream = self._stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))  # the tensor may still be in the making
        held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            held.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # its memory is free for others once the copy is done, not before
        return tensor.device, held

    def unpack(self, packed: torch.Tensor | tuple[torch.device, torch.Tensor]) -> torch.Tensor:
        """The tensor, where it was."""
        if isinstance(packed, torch.Tensor):
            return packed
        device, held = packed
        if device.type != "cuda":
            return held.to(device)
        torch.cuda.current_stream(device).wait_stream(self._stream(device))  # the copy to the host is done
        return held.to(device, non_blocking=True)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


def checkpoint_activations(model: Any, offload: bool = False) -> CheckpointedActivations:
    """Keep only the layers' inputs while training, until :meth:`CheckpointedActivations.remove`.

    Trainer's ``gradient_checkpointing`` must be off, since it would put its own function in place of this one.

    Args:
        model: a transformers model; adapters may be put around it later.
        offload: hold the layers' inputs, layers x tokens x hidden size, in pinned memory of the host.
    """
    return CheckpointedActivations(model, offload)


def _offloaded(function: Callable[..., Any], memory: HostMemory, *args: Any, **kwargs: Any) -> Any:
    # Inside, the hooks of the checkpoint are in force, so what these see is its own inputs: the hidden states, the one
    # tensor that transformers hands to a layer as a positional argument.
    with saved_tensors_hooks(memory.pack, memory.unpack):
        return function(*args, **kwargs)
