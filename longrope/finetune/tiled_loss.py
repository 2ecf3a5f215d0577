"""The loss a tile of positions at a time: the logits of a segment, (tokens, vocabulary), never exist as a whole.

At 128k tokens and a vocabulary of 128256 they take 63 GiB in float32, once in the forward and more than once in the
backward pass. Others offer this as well: Liger-Kernel (Triton, so GPUs only) and torch's linear_cross_entropy (new in
torch 2.13, where the floor is 2.6). Both take the weight of the output projection, so ZeRO-3, which gathers weights
when modules are called, adapters on that projection and softcapped or scaled logits are outside of what they can do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from longrope.exceptions import SettingsError
from longrope.finetune.replaced_forward import ReplacedForward
from longrope.finetune.tiles import apply_by_tiles, gather_whole, refuse_dropout
from longrope.model.architectures import architecture_for

IGNORED = -100
"""The label of a position without a loss."""
# Elements of one tile of float32 logits: 128 MiB.
_LOGITS = 1 << 25


class TiledLoss:
    """The tiled loss in force on a model; made by :func:`tile_loss`.

    Attributes:
        tile: positions whose logits exist at a time.
    """

    def __init__(self, model: Any, tile: int = 0) -> None:
        self._model = model
        self._architecture = architecture_for(model.config)
        self.tile = tile or max(_LOGITS // model.config.vocab_size, 16)
        self._names = list(inspect.signature(model.forward).parameters)
        _refuse_router_logits(getattr(model.config, "output_router_logits", False))
        gather_whole([model.get_output_embeddings()])
        self._replaced = ReplacedForward(model, self._forward)

    def remove(self) -> None:
        """Give the model its own forward back; nothing happens where that was done already."""
        self._replaced.remove()

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        kwargs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if kwargs.get("labels") is None and kwargs.get("shift_labels") is None:
            return original(**kwargs)
        labels, targets = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
        count = kwargs.pop("num_items_in_batch", None)
        as_tuple = kwargs.pop("return_dict", None) is False
        kwargs.pop("logits_to_keep", None)
        _refuse_router_logits(kwargs.pop("output_router_logits", False))
        if targets is None:
            targets = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        kwargs.setdefault("use_cache", False)  # nothing is generated from a pass with a loss
        outputs = self._architecture.decoder_of(self._model)(**kwargs, return_dict=True)
        hidden = outputs.last_hidden_state  # (B, T, D)
        targets = targets.to(hidden.device)  # (B, T)
        if count is None:
            count = (targets != IGNORED).sum().clamp(min=1)
        elif isinstance(count, torch.Tensor):
            count = count.to(hidden.device)
        loss = self._nll(hidden.flatten(0, 1), targets.flatten()) / count
        output = CausalLMOutputWithPast(
            loss=loss,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output.to_tuple() if as_tuple else output

    def _nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum of the negative log-likelihoods of targets (N,) after hidden states (N, D); a float32 scalar."""
        head = self._model.get_output_embeddings()
        refuse_dropout(head)

        def forward(original: Callable[..., torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
            as_model = SimpleNamespace(config=self._model.config, get_output_embeddings=lambda: original)
            return apply_by_tiles(partial(self._tile_nll, as_model), head.parameters(), self.tile, rows, targets)

        # All tiles pass inside of one call of the module, so that ZeRO-3 gathers its weight once for all of them.
        replaced = ReplacedForward(head, forward)
        try:
            nll: torch.Tensor = head(hidden)
        finally:
            replaced.remove()
        return nll

    def _tile_nll(self, as_model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self._architecture.logits(as_model, hidden).float()  # (n, V)
        return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def tile_loss(model: Any, tile: int = 0) -> TiledLoss:
    """Compute the model's loss a tile of positions at a time, until :meth:`TiledLoss.remove`.

    Called with ``labels`` (B, T), which it shifts, or ``shift_labels`` (B, T), shifted already, the model returns
    ``loss`` and no logits: the sum of the negative log-likelihoods in nats, float32, over ``num_items_in_batch`` or the
    number of labels that are not -100. Without labels it does what it did.

    Args:
        model: a transformers causal language model of a supported architecture, before DeepSpeed takes it over.
            Adapters may be put around it later; those on the output projection come first (then give
            ``get_base_model()`` of the PEFT model).
        tile: positions whose logits exist at a time; 0 for as many as make 128 MiB of float32 logits.

    Raises:
        UnsupportedModelError: if the architecture is not in the table.
        SettingsError: if the model is set to add a load-balancing loss of its experts.
    """
    return TiledLoss(model, tile)


def _refuse_router_logits(wanted: Any) -> None:
    if wanted:
        raise SettingsError(
            "output_router_logits asks for a load-balancing loss, which the tiled loss does not add; set it to false "
            "in the model's config.json"
        )
