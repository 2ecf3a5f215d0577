"""The table of what each architecture needs. Adding an architecture is a row here and a test.

A row says where the decoder keeps its rotary module and its head, in the names transformers uses. Architectures
whose RoPE this package cannot yet rescale faithfully are refused by name rather than run on a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longrope.exceptions import UnsupportedModelError


@dataclass(frozen=True)
class Architecture:
    """Where a transformers causal language model keeps what rescaling touches.

    Attributes:
        model_type: ``config.model_type``.
        decoder: attribute path from the causal model to the decoder that returns hidden states.
        rotary: attribute path from the decoder to its one shared rotary module.
        head: attribute path from the causal model to its output projection.
    """

    model_type: str
    decoder: str = "model"
    rotary: str = "rotary_emb"
    head: str = "lm_head"

    def decoder_of(self, model: Any) -> Any:
        return _resolve(model, self.decoder)

    def rotary_of(self, model: Any) -> Any:
        return _resolve(self.decoder_of(model), self.rotary)

    def set_rotary(self, model: Any, module: Any) -> None:
        *parents, name = self.rotary.split(".")
        setattr(_resolve(self.decoder_of(model), ".".join(parents)), name, module)

    def head_of(self, model: Any) -> Any:
        return _resolve(model, self.head)


ARCHITECTURES = {
    row.model_type: row
    for row in (
        Architecture("llama"),
        Architecture("mistral"),
        Architecture("qwen2"),
        Architecture("qwen3"),
        Architecture("phi3"),
    )
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
    if getattr(config, "rope_parameters", None) is None and getattr(config, "text_config", None) is None:
        raise UnsupportedModelError(
            f"model type {model_type!r} has no rope_parameters, so no rotary position embedding to extend; {supported}"
        )
    raise UnsupportedModelError(f"model type {model_type!r} is not supported yet; {supported}")


def _resolve(root: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        root = getattr(root, name)
    return root
