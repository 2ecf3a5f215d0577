"""Saved tiny models, and adapters in them that were 'trained': moved away from where they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import rotary_dim, tiny_config
from transformers import AutoModelForCausalLM

from longrope.finetune.adapters import add_adapters
from longrope.finetune.settings import AdapterSettings
from longrope.model.attach import attach
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors

LAMBDAS = (1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1)
PLAIN = AdapterSettings(train_embeddings_and_norms=False)


def factors(model_type: str = "llama", **changes: Any) -> RopeFactors:
    """Factors for a tiny model from 64 to 256 tokens."""
    width = rotary_dim(model_type)
    return RopeFactors(LAMBDAS[: width // 2], 1e4, width, 64, 256, attention_factor=1.1, **changes)


def save_model(folder: Path, model_type: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A tiny random model, with sharp attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes))
    model.to(dtype).save_pretrained(folder)
    return folder


def load_model(folder: Path) -> Any:
    return ModelSource(str(folder)).load_pretrained(dtype="auto").eval()


def trained(
    folder: Path, settings: AdapterSettings | None = None, policy: RopeFactors | None = None, size: float = 0.2
) -> Any:
    """The model in ``folder`` under its factors, with adapters whose every trained weight was changed."""
    model = load_model(folder)
    attach(model, policy or factors(model.config.model_type)).pin(256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = add_adapters(model, settings or AdapterSettings(), "lora", trained_dtype=model.dtype)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += size * parameter.std().nan_to_num(1.0).clamp(min=0.3) * torch.randn_like(parameter)
    return adapted


@torch.no_grad()
def logits(model: Any, length: int = 100) -> torch.Tensor:
    """Logits of random tokens, (1, T, V)."""
    ids = torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(0))
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found
