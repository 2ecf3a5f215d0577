"""Put a policy onto a loaded model, for a while or for good.

Setting ``config.rope_parameters`` on a loaded model does nothing to the rotary module that was already built, so the
module itself is exchanged. The window is chosen once per sequence, from its full length: before every forward pass a
hook works out the full length of each row (cached tokens included, padding not) and pins its factors, so that no layer
ever decides from the positions it happens to see. How ``generate`` crosses windows is written in generation.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from longrope.exceptions import RunFailedError, SettingsError, UnsupportedModelError
from longrope.model.architectures import GLOBAL_LAYERS, Architecture, architecture_for
from longrope.model.generation import Crossing, Generation
from longrope.model.rope_config import ModelRope, read_rope
from longrope.model.row_lengths import cached_tokens, row_lengths
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FixedFactors, RopePolicy
from longrope.rope.rotary import Mode, RotaryEmbedding

_CACHED = "longrope_factors"
"""The attribute of a cache that tells under which factors its keys were turned."""


class Attachment:
    """A policy in force on a model; made by :func:`attach` and :func:`attached`.

    Attributes:
        policy: the policy in force.
        rotary: the rotary module that took the place of the model's own.
    """

    def __init__(self, model: Any, policy: RopePolicy, mode: Mode = "exact", crossing: Crossing = "recompute") -> None:
        self.policy = policy
        self._model = model
        self._architecture: Architecture = architecture_for(getattr(model, "config", None))
        decoder = self._architecture.decoder_of(model)
        if not hasattr(decoder, "rotary_emb") or not hasattr(model, "generate"):
            raise UnsupportedModelError(
                f"{type(model).__name__} is no causal language model of transformers; give the one inside of it "
                "(get_base_model() of a PEFT model)"
            )
        self._names = list(inspect.signature(decoder.forward).parameters)
        self._original = self._architecture.rotary_of(model)
        if isinstance(self._original, RotaryEmbedding):
            raise SettingsError("the model already has a policy attached; detach it first")
        if getattr(model, "runs_longrope_code", False):
            raise SettingsError("the model runs the modeling file of its folder; load it with trust_remote_code=False")
        rope = read_rope(model.config)
        policy.reference.check_fits(rope.rope_theta, rope.rotary_dim)
        # Only a model with the same frequencies at every length has frequencies of its own to hand over; those that
        # went to half precision with the rest of the model are too coarse to take.
        native = None
        inv_freq = self._architecture.inv_freq_of(self._original)
        if isinstance(rope.policy, FixedFactors) and inv_freq.dtype == torch.float32:
            native = rope.present, inv_freq
        own = self._architecture.local_layers == "own"
        self.rotary = RotaryEmbedding(
            native, mode, layers=GLOBAL_LAYERS if own else None, others=self._original if own else None
        )
        self._length: int | None = None
        self._rows: tuple[RopeFactors, ...] | None = None
        self._generation = Generation(model, self, crossing)
        self._architecture.set_rotary(model, self.rotary)
        self._hooks = [
            decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            decoder.register_forward_hook(self._after_forward),
        ]
        local = _LocalRotary(_local_rotary(rope, self._original))
        self._hooks += [
            layer.register_forward_pre_hook(local, with_kwargs=True)
            for layer in self._architecture.shared_local_layers(model)
        ]

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

    @property
    def is_pinned(self) -> bool:
        """Whether a length holds for every coming pass."""
        return self._length is not None

    def detach(self) -> None:
        """Give the model back exactly as it was; nothing happens where that was done already."""
        for hook in self._hooks:
            hook.remove()
        self._generation.remove()
        if self._architecture.rotary_of(self._model) is self.rotary:
            self._architecture.set_rotary(self._model, self._original)

    def cache_fits(self, cache: Any, lengths: Sequence[int], new: int) -> bool:
        """Whether the cached keys of sequences that grew to ``lengths`` are turned by the factors these need now.

        Args:
            cache: a transformers cache that holds something.
            lengths: full length of each row.
            new: tokens of these that are not cached.
        """
        rows = [self.policy.factors_for(length) for length in lengths]
        known = getattr(cache, _CACHED, None)
        if known is None:  # filled by passes that this attachment did not see
            known = [self.policy.factors_for(max(length - new, 1)) for length in lengths]
        return _distinct(known) == _distinct(rows)

    def _before_forward(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = (), {**dict(zip(self._names, args, strict=False)), **kwargs}
        rows: Sequence[RopeFactors]
        if self._length is not None:
            rows, length = self._rows or (self.policy.factors_for(self._length),), self._length
        elif isinstance(self.policy, FixedFactors):
            past = cached_tokens(kwargs.get("past_key_values"))
            rows, length = (self.policy.factors,), past + int(_tokens(kwargs).shape[1])
        else:
            lengths = self._generation.take_lengths() or self._row_lengths(kwargs)
            rows, length = _distinct([self.policy.factors_for(each) for each in lengths]), max(lengths)
        decoder.rotary_emb.pin(rows, length)  # in a replica of data parallelism, its own
        if any(factors.n_hat for factors in rows):
            kwargs = _with_own_positions(kwargs)
        return args, kwargs

    def _after_forward(self, decoder: Any, args: tuple[Any, ...], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            setattr(cache, _CACHED, decoder.rotary_emb.factors)

    def _row_lengths(self, kwargs: dict[str, Any]) -> list[int]:
        """Full length of each row, from what a forward pass was given."""
        rows, new = (int(size) for size in _tokens(kwargs).shape[:2])
        past = cached_tokens(kwargs.get("past_key_values"))
        lengths = row_lengths(kwargs.get("attention_mask"), rows, past + new)
        if lengths is None:
            raise RunFailedError(
                "the attention mask does not tell how long each row is, so no window can be chosen; give a padding "
                "mask (rows, tokens), or pin(prompt + new tokens) before starting"
            )
        if past and not self.cache_fits(kwargs["past_key_values"], lengths, new):
            raise RunFailedError(
                f"a cached sequence grew to {max(lengths)} tokens and into another window, whose factors do not fit "
                "the cached keys; use generate(), which computes them anew (with guidance, give use_cache=False), or "
                "pin(prompt + new tokens) before starting"
            )
        return lengths


class _LocalRotary:
    """A hook for layers that share the decoder's rotary module but keep the model's own RoPE."""

    def __init__(self, rotary: torch.nn.Module) -> None:
        self._rotary = rotary

    def __call__(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        return args, {**kwargs, "position_embeddings": self._rotary(hidden, kwargs["position_ids"])}


def _local_rotary(rope: ModelRope, original: torch.nn.Module) -> torch.nn.Module:
    """The RoPE of local layers that share a module: the model's own, or plain where the config has factor lists.

    The lists are ours, meant for the global layers only; transformers has no way to say that for such a model.
    """
    if isinstance(rope.policy, FixedFactors):
        return original
    plain = RotaryEmbedding(mode="hf")
    plain.pin((rope.identity(),), rope.original_length)
    return plain


def _distinct(rows: Sequence[RopeFactors]) -> tuple[RopeFactors, ...]:
    """The factors of each row, or one entry where all rows have the same."""
    return (rows[0],) if all(factors == rows[0] for factors in rows) else tuple(rows)


def _tokens(kwargs: dict[str, Any]) -> torch.Tensor:
    """What a decoder is called with: token ids (B, T), or embeddings (B, T, D)."""
    given = kwargs.get("input_ids")
    tokens: torch.Tensor = kwargs["inputs_embeds"] if given is None else given
    return tokens


def _with_own_positions(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positions that start at each row's first token, since n_hat counts from there and not from the padding."""
    mask = kwargs.get("attention_mask")
    if kwargs.get("position_ids") is not None or not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.all():
        return kwargs
    positions = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)  # (B, past + new)
    return {**kwargs, "position_ids": positions[:, -_tokens(kwargs).shape[1] :]}


def attach(
    model: Any, policy: RopePolicy | RopeFactors, *, mode: Mode = "exact", window: Crossing = "recompute"
) -> Attachment:
    """Put ``policy`` onto ``model`` until :meth:`Attachment.detach`.

    Args:
        model: a transformers causal language model of a supported architecture.
        policy: which factors a sequence of a given full length uses; plain factors hold at every length.
        mode: ``exact`` forms angles in float64 above 64k tokens; ``hf`` reproduces transformers bit for bit.
        window: what ``generate`` does about windows. ``recompute``: each row uses the window of its present length,
            and crossing into another one computes the cache anew, once. ``reserve``: each row uses the window of its
            prompt and all new tokens from the start.

    Raises:
        FactorsError: if the factors are for another head size or rope_theta.
        UnsupportedModelError: if the architecture is not in the table, or the model is wrapped in another.
        SettingsError: if a policy is attached already, or ``mode`` or ``window`` is unknown.
    """
    return Attachment(model, FixedFactors(policy) if isinstance(policy, RopeFactors) else policy, mode, window)


@contextmanager
def attached(
    model: Any,
    policy: RopePolicy | RopeFactors,
    *,
    length: int | None = None,
    mode: Mode = "exact",
    window: Crossing = "recompute",
) -> Iterator[Attachment]:
    """``policy`` on ``model`` inside a ``with`` block; everything is put back at its end.

    Args:
        length: pin the full length of the sequences inside the block; see :meth:`Attachment.pin`.
    """
    attachment = attach(model, policy, mode=mode, window=window)
    try:
        if length is not None:
            attachment.pin(length)
        yield attachment
    finally:
        attachment.detach()
