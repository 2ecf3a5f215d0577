"""Models whose layers do not fit where they compute: kept in the memory of the host or on disk, loaded one at a time.

accelerate loads the weights of such a module before each of its forward passes, and drops them after it. A layer that
goes over a long sample in many chunks holds them from its first chunk to its last.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from longrope.host_memory import free_host_memory
from longrope.model.weights import count_numbers

GPU_SHARE = 0.85
"""Of the memory of a GPU, for all weights together; the rest is for what they compute."""
_HOST_SHARE = 0.9


def layers_kept(name: str, folder: Path, number: int, device: str, share: float) -> Literal["cpu", "disk"] | None:
    """Where the weights of decoder layers are kept that do not fit on the device, with a warning; None where they do.

    Args:
        name: of the model, for the warning.
        folder: with its weights.
        number: bytes of a number of the weights as they are loaded.
        device: where everything computes.
        share: of the memory of a GPU that the model may take.
    """
    from safetensors import SafetensorError

    try:
        size = number * count_numbers(folder)
    except SafetensorError:  # which loading them says better
        return None
    host, on_gpu = _HOST_SHARE * free_host_memory(), device.startswith("cuda")
    if on_gpu:
        fits = size <= GPU_SHARE * share * torch.cuda.get_device_properties(device).total_memory
    else:
        fits = device != "cpu" or size <= host
    if fits:
        return None
    kept: Literal["cpu", "disk"] = "cpu" if on_gpu and size <= host else "disk"
    warnings.warn(
        f"the weights of {name} do not fit on {device}: the layers are read from "
        f"{'main memory' if kept == 'cpu' else 'disk'}, one at a time, for every text, and every token that is "
        "written" + ("; GPUs of one model (--gpus-per-worker 2) would hold them" if on_gpu else ""),
        stacklevel=2,
    )
    return kept


def device_map(config: Any, device: str, layers: Literal["cpu", "disk"]) -> dict[str, str]:
    """Accelerate's device map of a causal model: its decoder layers here, and all else on the device.

    Args:
        config: the transformers config.
        device: where everything computes.
        layers: where the weights of the decoder layers are kept.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    found: dict[str, str] = {}
    for name, child in model.named_children():
        if child is model.base_model:
            found |= {f"{name}.{part}": layers if part == "layers" else device for part, _ in child.named_children()}
        else:
            found[name] = device
    return found


@contextmanager
def weights_held(layer: Any) -> Iterator[None]:
    """The weights of a layer where it computes, until the block ends; nothing happens where they are there anyway."""
    offloaded = [module for module in layer.modules() if getattr(getattr(module, "_hf_hook", None), "offload", False)]
    hooks = [module._hf_hook for module in offloaded]
    try:
        for module, hook in zip(offloaded, hooks, strict=True):
            hook.pre_forward(module)
            module._hf_hook = _moves_inputs_only(hook.execution_device)
        yield
    finally:
        for module, hook in zip(offloaded, hooks, strict=True):
            if module._hf_hook is not hook:
                module._hf_hook = hook
                hook.post_forward(module, None)


def _moves_inputs_only(device: Any) -> Any:
    from accelerate.hooks import AlignDevicesHook

    return AlignDevicesHook(execution_device=device)


def computes_on(module: Any) -> torch.device:
    """Where a module with a weight computes, wherever that is kept."""
    weight: torch.Tensor = module.weight
    if weight.device.type != "meta":
        return weight.device
    device = module._hf_hook.execution_device
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
