"""The sizes of a model that its memory and its work follow from, without its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from longrope.finetune.adapters import embeddings_and_norms, targets
from longrope.finetune.attention_projections import attention_projections
from longrope.finetune.sequence_parallel import local_window
from longrope.finetune.settings import AdapterSettings


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes; parameters are counted once where they are tied.

    Attributes:
        parameters: of the whole model.
        layers: decoder layers.
        hidden: width of the residual stream.
        vocabulary: rows of the output projection.
        heads: query heads.
        kv_heads: key-value heads.
        key_dim: dimensions of a query or a key of one head.
        value_dim: dimensions of a value.
        attention: parameters of one layer's projections of attention.
        mlp: parameters of one layer's MLP that a token passes through, averaged over the layers.
        layer: parameters of the largest layer, all experts counted.
        linear: parameters of all linear layers but the output projection, all experts counted.
        projections: parameters of the projections of attention, all layers.
        adapters: parameters of the low-rank adapters.
        in_full: parameters of embeddings and norms.
        tied: whether the output projection is the input embedding.
        windows: tokens that each layer attends to; None where that is all.
    """

    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    attention: int
    mlp: float
    layer: int
    linear: int
    projections: int
    adapters: int
    in_full: int
    tied: bool
    windows: tuple[int | None, ...]

    @property
    def head(self) -> int:
        """Parameters of the output projection."""
        return self.vocabulary * self.hidden

    def with_one_layer(self) -> ModelShape:
        """The same sizes, with parameters as a GPU holds them where layers are kept elsewhere: one at a time."""
        return replace(self, parameters=self.parameters - (self.layers - 1) * self.layer)

    def trained(self, method: str, embeddings_and_norms: bool = True) -> int:
        """Parameters that get gradients."""
        if method == "full":
            return self.parameters
        if method == "attention":
            return self.projections
        return self.adapters + (self.in_full if embeddings_and_norms else 0)

    @classmethod
    def of(cls, config: Any, adapter: AdapterSettings | None = None) -> ModelShape:
        """The sizes of the model of a transformers config, from building it without memory.

        Args:
            adapter: which adapters to count.

        Raises:
            SettingsError: if the model has no layers of the names that the adapter asks for.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        adapter = adapter or AdapterSettings()
        if not type(config).__module__.startswith("transformers."):  # read by code that came with the model
            config = AutoConfig.for_model(**config.to_dict())
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        layers = list(model.base_model.layers)
        active = [_active(layer.mlp, config) for layer in layers]
        linear = [each for layer in layers for each in layer.modules() if isinstance(each, torch.nn.Linear)]
        trained = attention_projections(model).values()
        names = set(targets(model, adapter))
        adapted = [
            module
            for name, module in model.base_model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in names
        ]
        kept = set(embeddings_and_norms(model))
        in_full = {
            id(parameter): parameter.numel()
            for name, module in model.named_modules()
            if name.rsplit(".", 1)[-1] in kept
            for parameter in module.parameters()
        }
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            parameters=sum(each.numel() for each in model.parameters()),
            layers=len(layers),
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            key_dim=getattr(config, "qk_head_dim", None) or head_dim,  # of two sizes with MLA
            value_dim=getattr(config, "v_head_dim", None) or head_dim,
            attention=_matrices(layers[0]) - _matrices(layers[0].mlp),
            mlp=sum(active) / len(active),
            layer=max(sum(each.numel() for each in layer.parameters()) for layer in layers),
            linear=sum(each.weight.numel() for each in linear),
            projections=sum(each.numel() for layer in trained for each in layer.parameters()),
            adapters=sum(adapter.rank * (each.in_features + each.out_features) for each in adapted),
            in_full=sum(in_full.values()),
            tied=bool(config.tie_word_embeddings),
            windows=_windows(config, len(layers)),
        )


def _matrices(module: torch.nn.Module) -> int:
    return sum(each.numel() for each in module.parameters() if each.ndim > 1)


def _active(mlp: torch.nn.Module, config: Any) -> float:
    """Parameters that a token passes through, of a mixture those of as many experts as it is sent to."""
    experts = next((module for name, module in mlp.named_modules() if name == "experts"), None)
    if experts is None:
        return _matrices(mlp)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next(int(value) for name in names if (value := getattr(config, name, None)))
    chosen = int(config.num_experts_per_tok) / count
    return _matrices(mlp) - _matrices(experts) * (1 - chosen)


def _windows(config: Any, layers: int) -> tuple[int | None, ...]:
    window = local_window(config)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[:layers])
