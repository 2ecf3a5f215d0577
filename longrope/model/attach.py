"""Put a policy onto a loaded model, for a while or for good.

Setting ``config.rope_parameters`` on a loaded model does nothing to the rotary module that was already built, so the
module itself is exchanged. The window is chosen once per sequence, from its full length: before every forward pass a
hook works out the full length of each row (cached tokens included, padding not) and pins its factors, so that no layer
ever decides from the positions it happens to see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from longrope.exceptions import RunFailedError, SettingsError
from longrope.model.architectures import Architecture, architecture_for
from longrope.model.rope_config import read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FixedFactors, RopePolicy
from longrope.rope.rotary import Mode, RotaryEmbedding


class Attachment:
    """A policy in force on a model; made by :func:`attach` and :func:`attached`.

    Attributes:
        policy: the policy in force.
        rotary: the rotary module that took the place of the model's own.
    """

    def __init__(self, model: Any, policy: RopePolicy, mode: Mode = "exact") -> None:
        self.policy = policy
        self._model = model
        self._architecture: Architecture = architecture_for(model.config)
        self._original = self._architecture.rotary_of(model)
        if isinstance(self._original, RotaryEmbedding):
            raise SettingsError("the model already has a policy attached; detach it first")
        rope = read_rope(model.config)
        policy.reference.check_fits(rope.rope_theta, rope.rotary_dim)
        # Only a model with the same frequencies at every length has frequencies of its own to hand over.
        native = (rope.present, self._original.inv_freq) if isinstance(rope.policy, FixedFactors) else None
        self.rotary = RotaryEmbedding(mode=mode, native=native)
        self._length: int | None = None
        self._rows: tuple[RopeFactors, ...] | None = None
        self._architecture.set_rotary(model, self.rotary)
        decoder = self._architecture.decoder_of(model)
        self._hook = decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def pin(self, length: int) -> None:
        """Treat every coming sequence as ``length`` tokens long in all, whatever the passes show of it.

        For passes that see only a part of a sequence: chunked prefill, shards of sequence parallelism, or a prompt
        that will grow to ``length`` while generating.
        """
        self._length, self._rows = length, None

    def pin_rows(self, rows: Sequence[RopeFactors], length: int) -> None:
        """Give each batch row factors of its own (several candidates on one text), for sequences of ``length``."""
        self._length, self._rows = length, tuple(rows)

    def unpin(self) -> None:
        """Go back to taking the length from each forward pass."""
        self._length, self._rows = None, None

    def detach(self) -> None:
        """Give the model back exactly as it was; nothing happens where that was done already."""
        self._hook.remove()
        if self._architecture.rotary_of(self._model) is self.rotary:
            self._architecture.set_rotary(self._model, self._original)

    def _before_forward(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows: Sequence[RopeFactors]
        if self._length is not None:
            rows, length = self._rows or (self.policy.factors_for(self._length),), self._length
        else:
            rows, length = self._decide(args, kwargs)
        self.rotary.pin(rows, length)
        if any(factors.n_hat for factors in rows):
            kwargs = _with_own_positions(args, kwargs)
        return args, kwargs

    def _decide(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[RopeFactors], int]:
        """The factors of each row, or one entry for all rows, and the length of the longest."""
        tokens = _tokens(args, kwargs)
        new = int(tokens.shape[1])
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        lengths = self._row_lengths(kwargs.get("attention_mask"), int(tokens.shape[0]), past + new)
        rows = [self.policy.factors_for(length) for length in lengths]
        if past:
            for length, factors in zip(lengths, rows, strict=True):
                if factors != self.policy.factors_for(max(length - new, 1)):
                    raise RunFailedError(
                        f"a cached sequence grew to {length} tokens and into another window, whose factors do not fit "
                        "the cached keys; generate with use_cache=False, or pin(prompt + new tokens) before starting"
                    )
        if all(factors == rows[0] for factors in rows):
            rows = rows[:1]
        return rows, max(lengths)

    def _row_lengths(self, mask: Any, rows: int, length: int) -> list[int]:
        """Full length of each row: what its padding mask (B, T) counts, or all of it."""
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            return [max(int(count), 1) for count in mask.sum(dim=-1)]
        if mask is None or isinstance(self.policy, FixedFactors):
            return [length] * rows
        raise RunFailedError(
            "the attention mask does not tell how long each row is, so no window can be chosen; give a padding mask "
            "(rows, tokens) and a dynamic cache, or pin(prompt + new tokens) before starting"
        )


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """What a decoder is called with: token ids (B, T), or embeddings (B, T, D)."""
    given = kwargs.get("input_ids", args[0] if args else None)
    tokens: torch.Tensor = kwargs["inputs_embeds"] if given is None else given
    return tokens


def _with_own_positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positions that start at each row's first token, since n_hat counts from there and not from the padding."""
    mask = kwargs.get("attention_mask")
    if kwargs.get("position_ids") is not None or not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.all():
        return kwargs
    positions = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)  # (B, past + new)
    return {**kwargs, "position_ids": positions[:, -_tokens(args, kwargs).shape[1] :]}


def attach(model: Any, policy: RopePolicy | RopeFactors, *, mode: Mode = "exact") -> Attachment:
    """Put ``policy`` onto ``model`` until :meth:`Attachment.detach`.

    Args:
        model: a transformers causal language model of a supported architecture.
        policy: which factors a sequence of a given full length uses; plain factors hold at every length.
        mode: ``exact`` forms angles in float64 above 64k tokens; ``hf`` reproduces transformers bit for bit.

    Raises:
        FactorsError: if the factors are for another head size or rope_theta.
        UnsupportedModelError: if the architecture is not in the table.
        SettingsError: if a policy is attached already.
    """
    return Attachment(model, FixedFactors(policy) if isinstance(policy, RopeFactors) else policy, mode)


@contextmanager
def attached(
    model: Any, policy: RopePolicy | RopeFactors, *, length: int | None = None, mode: Mode = "exact"
) -> Iterator[Attachment]:
    """``policy`` on ``model`` inside a ``with`` block; everything is put back at its end.

    Args:
        length: pin the full length of the sequences inside the block; see :meth:`Attachment.pin`.
    """
    attachment = attach(model, policy, mode=mode)
    try:
        if length is not None:
            attachment.pin(length)
        yield attachment
    finally:
        attachment.detach()
