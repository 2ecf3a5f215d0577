"""Run a decoder over a long sample layer by layer: one residual stream, and one layer's keys and values, at a time.

A plain forward pass holds what a layer makes of the whole sample at once. Here each layer goes over the sample in
chunks, in order: a chunk's keys and values join those before it, its queries attend to all of these, and what the
layer makes of it takes the chunk's place in the residual stream. Layers run their own code and are given what the
decoder's own code gives them, so that no architecture needs anything here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface

from longrope.exceptions import UnsupportedModelError
from longrope.model.causal_attention import causal_attention
from longrope.model.layer_keys import KeysCollectedError, LayerKeys, attention_dtype
from longrope.model.memory_retries import Parts, free_unused, is_out_of_memory, may_retry
from longrope.model.offloading import weights_held
from longrope.model.residual import DeviceResidual, HostResidual, Residual
from longrope.model.sequence_split import SequenceSplit

LEAST_CHUNK = 64
"""Tokens of a chunk at which running out of memory is an error."""
KEPT = 1 << 28
"""Bytes of what the decoder gives its layers, cosines and sines mostly, that are kept from layer to layer."""
_CHUNKED = "longrope_causal"
_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Implementations of transformers that align their causal mask at the bottom right by themselves."""


class LayerByLayer:
    """A sample on its way through the layers of a decoder.

    Args:
        decoder: the part of a causal language model of transformers that turns token ids into hidden states; with a
            policy attached, and the length of the sample pinned.
        batch: token ids (B, T), on the device of the embeddings.
        chunk: tokens at a time; halved where memory runs out.
        on_host: whether the residual stream is in the memory of the host.
        split: this process's place among several that work on the sample together; None for one alone.
    """

    def __init__(
        self,
        decoder: Any,
        batch: torch.Tensor,
        chunk: int,
        on_host: bool = False,
        split: SequenceSplit | None = None,
    ) -> None:
        self._decoder = decoder
        self._layers = list(decoder.layers)
        self._stand_ins = [_StandIn(layer) for layer in self._layers]
        self._batch = batch
        self._length = batch.shape[1]
        self._residual: type[HostResidual | DeviceResidual] = HostResidual if on_host else DeviceResidual
        self._split = split
        self._keys = LayerKeys(self._length)
        self._known: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self._parts = Parts(chunk, LEAST_CHUNK, may_retry(decoder), self._known.clear)
        implementation = decoder.config._attn_implementation
        self._attention = implementation if implementation in _FLASH else _CHUNKED

    def run(self, first: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
        """Final hidden states from position ``first`` on, part by part: where it starts, and (B, n, D).

        Of several processes each gives those of its own parts of the sample.
        """
        ranges = [(0, self._length)] if self._split is None else self._split.parts(self._length)
        # Under an implementation that transformers does not know, the decoder makes no masks.
        with torch.inference_mode(), _implementation(self._decoder, _CHUNKED), self._standing_in():
            residuals = [(begin, end, self._embedded(begin, end)) for begin, end in ranges]
            for number, layer in enumerate(self._layers):
                with weights_held(layer):
                    self._pass(number, residuals)
            for begin, end, residual in residuals:
                yield from self._parts.over(max(begin, first), end, partial(self._finish, residual))

    def _embedded(self, begin: int, end: int) -> Residual:
        """What the first layer is given of a part of the sample."""
        residual: Residual | None = None

        def embed(start: int, stop: int) -> None:
            nonlocal residual
            self._decode(start, stop)
            hidden = self._stand_ins[0].hidden
            residual = residual or self._stream(hidden, begin, end)
            residual.write(start, hidden)

        for _ in self._parts.over(begin, end, embed):
            pass
        assert residual is not None
        return residual

    def _stream(self, like: torch.Tensor, begin: int, end: int) -> Residual:
        """On the device, or on the host where the device turns out to have no room."""
        try:
            return self._residual(like, begin, end)
        except RuntimeError as error:
            if not is_out_of_memory(error) or self._residual is HostResidual:
                raise
        self._residual = HostResidual
        free_unused()
        return HostResidual(like, begin, end)

    def _pass(self, number: int, residuals: list[tuple[int, int, Residual]]) -> None:
        """Exchange the residual stream for what a layer makes of it."""
        if self._split is not None:
            for begin, end, residual in residuals:
                for _ in self._parts.over(begin, end, partial(self._collect, number, residual)):
                    pass
            self._split.gather(self._keys, self._length)
        for begin, end, residual in residuals:
            for _ in self._parts.over(begin, end, partial(self._exchange, number, residual)):
                pass

    def _exchange(self, number: int, residual: Residual, start: int, stop: int) -> None:
        residual.write(start, self._forward(number, residual, start, stop))

    def _forward(self, number: int, residual: Residual, start: int, stop: int) -> torch.Tensor:
        """What a layer makes of a part of the residual stream."""
        given = self._given(start, stop)[number]
        self._keys.start = start
        with _implementation(self._decoder, self._attention):
            out = self._layers[number](residual.read(start, stop), **given)
        made: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return made

    def _collect(self, number: int, residual: Residual, start: int, stop: int) -> None:
        """Only the keys and values that a layer makes of a part of the residual stream."""
        self._keys.only = True
        try:
            self._forward(number, residual, start, stop)
        except KeysCollectedError:
            pass
        finally:
            self._keys.only = False

    def _finish(self, residual: Residual, start: int, stop: int) -> torch.Tensor:
        """What the decoder makes of what its last layer made."""
        self._stand_ins[-1].makes = residual.read(start, stop)
        return self._decode(start, stop)

    def _given(self, start: int, stop: int) -> list[dict[str, Any]]:
        """What the decoder gives to each layer beside the hidden states."""
        if (start, stop) in self._known:
            return self._known[start, stop]
        self._decode(start, stop)
        given = [stand_in.given for stand_in in self._stand_ins]
        if _bytes(given) * self._length <= KEPT * (stop - start):
            self._known[start, stop] = given
        return given

    def _decode(self, start: int, stop: int) -> torch.Tensor:
        """The decoder's own code on a part of the sample, with layers that only stand in for its own."""
        self._keys.start = start
        hidden: torch.Tensor = self._decoder(
            input_ids=self._batch[:, start:stop],
            position_ids=torch.arange(start, stop, device=self._batch.device)[None],
            past_key_values=self._keys,
            use_cache=True,
        ).last_hidden_state
        return hidden

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        real = self._decoder.layers
        self._decoder.layers = torch.nn.ModuleList(self._stand_ins)
        try:
            yield
        finally:
            self._decoder.layers = real


class _StandIn(torch.nn.Module):
    """In place of a decoder layer: keeps what it is given, and makes of it nothing, or what it is told to.

    Attributes:
        hidden: states that it was given, (B, n, D).
        given: what it was given by name.
        makes: what it returns; None to return what it is given.
    """

    hidden: torch.Tensor
    given: dict[str, Any]

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, so that it is no part of this module
        self.makes: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Whatever else the decoder asks of the layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer[0], name)

    def forward(self, hidden: torch.Tensor, **given: Any) -> torch.Tensor:
        self.hidden, self.given = hidden, given
        return hidden if self.makes is None else self.makes


def _bytes(given: list[dict[str, Any]]) -> int:
    """Of the tensors among what layers are given; what several are given counts once."""
    values = [value for each in given for value in each.values()]
    tensors = [
        tensor
        for value in values
        for tensor in (value if isinstance(value, tuple) else (value,))
        if isinstance(tensor, torch.Tensor)
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@contextmanager
def _implementation(decoder: Any, name: str) -> Iterator[None]:
    """Another attention implementation for all of a decoder, which reads it at every call."""
    config = decoder.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention as transformers calls it."""
    assert attention_mask is None, "a mask for a chunk of a sample without padding"
    if s_aux is not None or is_causal is False:
        raise UnsupportedModelError("attention with sinks, or that is not causal, cannot be computed in chunks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = query.to(attention_dtype(query))
    return causal_attention(query, key, value, scale, sliding_window, softcap), None


AttentionInterface.register(_CHUNKED, _attend)
