"""What two ways of training have to agree in: the loss, and the gradient of everything that is trained."""

from __future__ import annotations

from typing import Any

import torch


def loss_and_gradients(model: torch.nn.Module, **inputs: Any) -> dict[str, torch.Tensor]:
    """The loss under ``loss``, gradients under the names of the parameters; those without one are left out."""
    model.zero_grad()
    rows, length = inputs["input_ids"].shape
    loss = model(position_ids=torch.arange(length).expand(rows, length), use_cache=False, **inputs).loss
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    assert gradients
    return {"loss": loss.detach(), **gradients}


def token_ids(length: int, rows: int = 2, vocabulary: int = 128) -> torch.Tensor:
    """Random ids (rows, length), the same for the same length."""
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(length))
