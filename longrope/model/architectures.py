"""The table of what each architecture needs. Adding an architecture is a row here and a test (docs/architectures.md).

transformers builds its decoders alike: ``model.base_model`` holds one ``rotary_emb`` that all layers share. A row says
what deviates. Architectures whose RoPE this package cannot rescale faithfully are refused by name rather than run on
a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from longrope.exceptions import UnsupportedModelError

GLOBAL_LAYERS = "full_attention"
"""The layer type, in transformers' terms, whose RoPE is rescaled where layers differ."""


@dataclass(frozen=True)
class Architecture:
    """What rescaling has to know of a transformers causal language model.

    Attributes:
        model_type: ``config.model_type``.
        local_layers: how layers that attend to a sliding window by design, and keep the model's own RoPE, get it.
            ``own``: the rotary module knows layer types, and the config has parameters for each. ``shared``: they
            share the parameters and the module of the global layers. None: there are no such layers.
        sdpa: whether torch's scaled_dot_product_attention can compute its attention.
    """

    model_type: str
    local_layers: Literal["own", "shared"] | None = None
    sdpa: bool = True

    def decoder_of(self, model: Any) -> Any:
        """The part that turns token ids into hidden states."""
        return model.base_model

    def rotary_of(self, model: Any) -> Any:
        """The one rotary module of the decoder."""
        return self.decoder_of(model).rotary_emb

    def set_rotary(self, model: Any, module: Any) -> None:
        self.decoder_of(model).rotary_emb = module

    def inv_freq_of(self, rotary: Any) -> torch.Tensor:
        """The inverse frequencies that the model's own rotary module was built with, (rotary_dim / 2,) in float32."""
        name = f"{GLOBAL_LAYERS}_inv_freq" if self.local_layers == "own" else "inv_freq"
        inv_freq: torch.Tensor = getattr(rotary, name)
        return inv_freq

    def rope_parameters_of(self, config: Any) -> dict[str, Any]:
        """The rope parameters of the layers that are rescaled; a copy."""
        parameters = getattr(config, "rope_parameters", None) or {}
        return dict(parameters[GLOBAL_LAYERS] if self.local_layers == "own" else parameters)

    def set_rope_parameters(self, config: Any, parameters: dict[str, Any]) -> None:
        """Replace the rope parameters of the layers that are rescaled."""
        if self.local_layers == "own":
            parameters = {**config.rope_parameters, GLOBAL_LAYERS: parameters}
        config.rope_parameters = parameters

    def shared_local_layers(self, model: Any) -> list[Any]:
        """The layers that keep the model's own RoPE although they share its module with the rescaled ones."""
        if self.local_layers != "shared":
            return []
        layers = zip(self.decoder_of(model).layers, model.config.layer_types, strict=False)
        return [layer for layer, layer_type in layers if layer_type != GLOBAL_LAYERS]

    def logits(self, model: Any, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits (..., V) of hidden states (..., D), as the causal model makes them."""
        logits: torch.Tensor = model.get_output_embeddings()(hidden)
        scaling = getattr(model.config, "logits_scaling", None)  # granite
        if scaling is not None:
            logits = logits / scaling
        cap = getattr(model.config, "final_logit_softcapping", None)  # gemma2, gemma3
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits


ARCHITECTURES = {
    row.model_type: row
    for row in (
        Architecture("llama"),
        Architecture("mistral"),
        Architecture("mixtral"),
        Architecture("qwen2"),
        Architecture("qwen3"),
        Architecture("qwen3_moe"),
        Architecture("phi3"),
        Architecture("gemma2", local_layers="shared", sdpa=False),  # it caps attention scores
        Architecture("gemma3_text", local_layers="own"),
        Architecture("olmo2"),
        Architecture("granite"),
        Architecture("gpt_neox"),
        Architecture("stablelm"),
        Architecture("smollm3"),
        Architecture("glm4"),
        Architecture("deepseek_v3"),
    )
}

_REASONS = {
    "cohere2": "applies RoPE in its sliding-window layers only, and its global layers know no positions, so rescaling "
    "cannot extend it",
    "llama4_text": "applies RoPE in its chunked layers only, and its global layers know no positions, so rescaling "
    "cannot extend it",
}


def architecture_for(config: Any) -> Architecture:
    """The row of a transformers config.

    Raises:
        UnsupportedModelError: if the model has no RoPE or its architecture is not in the table.
    """
    model_type = getattr(config, "model_type", None)
    row = ARCHITECTURES.get(str(model_type))
    if row is not None:
        return row
    supported = f"supported: {', '.join(sorted(ARCHITECTURES))}"
    name = f"model type {model_type!r}"
    if model_type in _REASONS:
        raise UnsupportedModelError(f"{name} {_REASONS[model_type]}; {supported}")
    text = getattr(config, "text_config", None)
    if text is not None:
        backbone = getattr(text, "model_type", None)
        if backbone in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{name} is multimodal; save its language model, of type {backbone!r}, as a model of its own and give "
                "that (docs/architectures.md shows how)"
            )
        raise UnsupportedModelError(
            f"{name} is multimodal, and its language model, of type {backbone!r}, is not in the table; {supported}"
        )
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        raise UnsupportedModelError(
            f"{name} has no rope_parameters, so no rotary position embedding to extend; {supported}"
        )
    if "mrope_section" in parameters:
        raise UnsupportedModelError(f"{name} has positions of three dimensions (M-RoPE), not of one; {supported}")
    raise UnsupportedModelError(
        f"{name} is not in the table, and factors for an unknown layout of its RoPE would be a guess; {supported}"
    )
