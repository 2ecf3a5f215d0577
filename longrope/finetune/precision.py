"""In which dtype weights are held and passes are computed, and which kernel computes attention."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from longrope.exceptions import SettingsError
from longrope.finetune.settings import FinetuneSettings

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


@dataclass(frozen=True)
class Precision:
    """The numbers of a run.

    Attributes:
        name: ``bf16``, ``fp16`` or ``fp32``: what passes are computed in.
        weights: the dtype in which the model is loaded.
        autocast: the dtype of autocast, where weights have more bits than passes; None otherwise.
    """

    name: str
    weights: torch.dtype
    autocast: torch.dtype | None


def choose_precision(settings: FinetuneSettings, device: str) -> Precision:
    """Fill in ``auto``, and choose the dtype of the weights.

    DeepSpeed keeps float32 copies of half-precision weights in its optimizer. Without it the trained weights
    themselves must be float32, or the small steps of fine-tuning are lost in rounding; with adapters, frozen ones need
    not.

    Args:
        device: ``cuda`` or ``cpu``. Where this machine has no GPU itself, those of the cluster are taken to have bf16.

    Raises:
        SettingsError: if the device cannot compute in the precision asked for.
    """
    name = settings.precision
    if name == "auto":
        name = "fp32"
        if device == "cuda":
            name = "bf16" if _has_bf16() else "fp16"
    if name == "fp16" and device == "cpu":
        raise SettingsError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if name == "bf16" and device == "cpu" and settings.zero:
        raise SettingsError("precision bf16 needs a GPU under DeepSpeed; use fp32, or --zero 0")
    if name == "bf16" and device == "cuda" and not _has_bf16():
        raise SettingsError("precision bf16 needs a GPU of compute capability 8.0 or higher; use fp16")
    half = _DTYPES[name]
    if name == "fp32":
        return Precision(name, torch.float32, None)
    if settings.zero == 0 and not settings.adapts:
        return Precision(name, torch.float32, half)
    return Precision(name, half, half if settings.zero == 0 else None)


def _has_bf16() -> bool:
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def choose_kernel(settings: FinetuneSettings, precision: Precision, device: str) -> str:
    """The attention implementation of transformers.

    Raises:
        SettingsError: if FlashAttention was asked for and cannot be used.
    """
    possible = device == "cuda" and precision.name != "fp32"
    if settings.kernel == "auto":
        # FlashAttention needs compute capability 8.0, as bf16 does.
        flash = possible and _has_bf16() and find_spec("flash_attn") is not None
        return "flash_attention_2" if flash else "sdpa"
    if settings.kernel in _PACKAGES and not possible:
        raise SettingsError(f"kernel {settings.kernel!r} needs a GPU and bf16 or fp16; use sdpa")
    package = _PACKAGES.get(settings.kernel)
    if package is not None and torch.cuda.is_available() and find_spec(package) is None:
        raise SettingsError(f"kernel {settings.kernel!r} needs the package {package}, which is not installed; use sdpa")
    return settings.kernel
