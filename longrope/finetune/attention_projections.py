"""The projections of attention, the only weights that meet positions, trained alone.

Positions reach a model through queries and keys. Where factors change, training these layers and no others moves the
rest of the model, and with it short texts, less than training everything does.
"""

from __future__ import annotations

from typing import Any

import torch

_ATTENTION = ("self_attn", "attention")  # what transformers calls a layer's attention


def attention_projections(model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers of attention: q_proj, k_proj, v_proj and o_proj in llama, qkv_proj and o_proj in phi3, ...

    Args:
        model: a transformers causal language model.

    Returns:
        The layers by their names in the decoder.
    """
    found = {}
    for name, module in model.base_model.named_modules():
        parents = name.split(".")[:-1]
        if isinstance(module, torch.nn.Linear) and parents and parents[-1] in _ATTENTION:
            found[name] = module
    return found


def train_only_attention(model: Any) -> None:
    """Freeze all of ``model`` but the projections of attention, with their biases."""
    model.requires_grad_(False)
    for layer in attention_projections(model).values():
        layer.requires_grad_(True)
