"""Factors and saved models for the tests of exported folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_models import rotary_dim
from transformers import AutoModelForCausalLM

from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

LAMBDAS = (1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1)


def factors(model_type: str = "llama", target: int = 256, stretch: float = 1.0, **changes: Any) -> RopeFactors:
    """Factors for a tiny model, pretrained on 64 tokens; ``stretch`` is how far they are from plain RoPE."""
    width = rotary_dim(model_type)
    lambdas = tuple(1 + (each - 1) * stretch for each in LAMBDAS[: width // 2])
    return RopeFactors(lambdas, 1e4, width, 64, target, **changes)


def two_windows(model_type: str = "llama", attention_factor: float = 1.15) -> FactorSchedule:
    """Windows of 64 and 256 tokens with factors of their own."""
    near = factors(model_type, 64, 0.25, attention_factor=attention_factor)
    return FactorSchedule((Window(64, near), Window(256, factors(model_type, attention_factor=attention_factor))))


def save(model: Any, folder: Path, tokenizer: Any = None) -> ModelSource:
    """Save a model, and a tokenizer that knows of 64 tokens."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.model_max_length = 64
        tokenizer.save_pretrained(folder)
    return ModelSource(str(folder))


def plain_transformers(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@torch.inference_mode()
def logits_of(model: Any, length: int, seed: int = 0) -> torch.Tensor:
    """Logits of random tokens, (1, T, V)."""
    ids = torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(seed))
    return model(ids, use_cache=False).logits


Make = Callable[..., Any]
