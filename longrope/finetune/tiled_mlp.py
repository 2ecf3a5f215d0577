"""MLPs a tile of positions at a time, as in Arctic Long Sequence Training (arXiv 2506.13996, section 3.1).

An MLP treats every position for itself, and its widest tensors, (tokens, intermediate size), are what a layer that is
computed again in the backward pass holds most of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from longrope.exceptions import SettingsError
from longrope.finetune.replaced_forward import ReplacedForward
from longrope.finetune.tiles import apply_by_tiles, gather_whole, refuse_dropout
from longrope.model.architectures import architecture_for


class TiledMLP:
    """Tiled MLPs in force on a model; made by :func:`tile_mlp`."""

    def __init__(self, model: Any, tile: int) -> None:
        assert tile > 0
        architecture = architecture_for(model.config)
        blocks = [layer.mlp for layer in architecture.decoder_of(model).layers]
        if any(hasattr(block, "experts") for block in blocks):
            raise SettingsError(
                f"tile-mlp is for dense MLPs, and model type {architecture.model_type!r} has mixtures of experts; use "
                "tile-mlp 0"
            )
        self._tile = tile
        gather_whole(blocks)
        self._replaced = [ReplacedForward(block, self._forward_of(block)) for block in blocks]

    def remove(self) -> None:
        """Give the MLPs their own forward back; nothing happens where that was done already."""
        for replaced in self._replaced:
            replaced.remove()

    def _forward_of(self, block: torch.nn.Module) -> Callable[..., torch.Tensor]:
        def forward(original: Callable[..., torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
            refuse_dropout(block)
            rows = hidden.flatten(0, -2)  # (B T, D)
            if len(rows) <= self._tile:
                return original(hidden)
            return apply_by_tiles(original, block.parameters(), self._tile, rows).view(*hidden.shape[:-1], -1)

        return forward


def tile_mlp(model: Any, tile: int) -> TiledMLP:
    """Pass ``tile`` positions at a time through each layer's MLP, until :meth:`TiledMLP.remove`.

    Args:
        model: a transformers causal language model of a supported architecture, before DeepSpeed takes it over;
            adapters may be put into it later.
        tile: positions, counted over the whole micro-batch; at least 1.

    Raises:
        UnsupportedModelError: if the architecture is not in the table.
        SettingsError: if it has mixtures of experts; in the first pass, if there is dropout inside of an MLP.
    """
    return TiledMLP(model, tile)
