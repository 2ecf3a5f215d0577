"""A causal language model whose RoPE has any number of windows and n_hat, after LongRoPE (arXiv 2402.13753).

Lies in a model folder and is run with ``trust_remote_code=True``; it needs torch and transformers alone. The windows
are in config.json under ``longrope``. Without it, transformers reads the two lists of ``rope_parameters``.

The window of a row follows from its full length and holds for all of its positions. A row that grows into another
window while it is generated has its cache computed anew, once.
"""
# mypy: disable-error-code="arg-type, index, misc, override, union-attr"

from __future__ import annotations

import copy
import inspect
import threading
import weakref
from typing import Any

import torch
from transformers import DynamicCache
from transformers import LlamaForCausalLM as Base

_CACHED = "longrope_windows"  # the attribute of a cache that tells in which windows its keys were turned
_FLOAT32_LENGTH = 65536  # longer sequences need float64 angles: float32 products are off by 4e-3 at 128k tokens
_CHUNK = 65536  # positions whose angles are held at a time
_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
_LOCKS: Any = weakref.WeakKeyDictionary()  # one for each model: it holds the windows of one generation at a time


class WindowedRotary(torch.nn.Module):
    """Cosine and sine under the windows of each row.

    Args:
        windows: ``max_length``, ``lambdas``, ``n_hat`` and ``attention_factor`` of each.
        rope_theta: base of plain RoPE.
        layer_type: the layer type that is rescaled, where a model asks by layer type.
        others: the rotary module of all other layer types.
    """

    def __init__(
        self,
        windows: list[dict[str, Any]],
        rope_theta: float,
        layer_type: str | None = None,
        others: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.rope_theta = rope_theta
        self.layer_type = layer_type
        self.others = others
        self.rows: tuple[int, ...] = (0,)  # the window of each row, or one entry for all rows
        self.length = 1  # of the longest row

    def window_of(self, length: int) -> int:
        """The first window that holds so many tokens, or the last."""
        holding = (index for index, window in enumerate(self.windows) if length <= window["max_length"])
        return next(holding, len(self.windows) - 1)

    @torch.no_grad()
    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer_type != self.layer_type and self.others is not None:
            elsewhere: tuple[torch.Tensor, torch.Tensor] = self.others(x, position_ids, layer_type)
            return elsewhere
        dtype = torch.float64 if self.length > _FLOAT32_LENGTH else torch.float32
        device = torch.device("cpu") if x.device.type == "mps" and dtype == torch.float64 else x.device
        windows = [self.windows[index] for index in self.rows]  # R
        lambdas = torch.tensor([each["lambdas"] for each in windows], dtype=dtype, device=device)  # (R, d/2)
        pairs = lambdas.shape[1]
        exponents = torch.arange(0, 2 * pairs, 2, device=device).to(dtype) / (2 * pairs)
        plain = 1.0 / (self.rope_theta**exponents)  # (d/2,)
        rescaled = 1.0 / (lambdas * self.rope_theta**exponents)
        late = any(each["n_hat"] for each in windows)
        starts = torch.tensor([each["n_hat"] for each in windows], device=device)[:, None, None]
        scale = torch.tensor([each["attention_factor"] for each in windows], dtype=dtype, device=device)[:, None, None]
        parts = []
        for positions in position_ids.to(device).split(_CHUNK, dim=-1):
            chunk = positions[:, :, None]  # (B, T, 1)
            rates = torch.where(chunk < starts, plain, rescaled[:, None]) if late else rescaled[:, None]
            angles = (chunk.to(dtype) * rates).repeat(1, 1, 2)  # (B, T, d)
            parts.append(((angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)))
        cos, sin = (torch.cat(each, dim=1).to(x.device) for each in zip(*parts, strict=True))
        return cos, sin


class LongRopeLlamaForCausalLM(Base):
    """The model of this folder with all of its windows."""

    runs_longrope_code = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        settings = config.longrope
        decoder = self.base_model
        layer_type = settings["layer_type"]
        self._rotary = [  # in a list, so that it is no submodule of two modules
            WindowedRotary(
                settings["windows"], settings["rope_theta"], layer_type, decoder.rotary_emb if layer_type else None
            )
        ]
        decoder.rotary_emb = self._rotary[0]
        self._names = list(inspect.signature(decoder.forward).parameters)
        decoder.register_forward_pre_hook(self._choose_windows, with_kwargs=True)
        decoder.register_forward_hook(self._mark_cache)
        pairs = len(settings["windows"][0]["lambdas"])
        plain = {"max_length": 1, "lambdas": [1.0] * pairs, "n_hat": 0, "attention_factor": 1.0}
        local = WindowedRotary([plain], settings["rope_theta"])
        for index in settings["plain_layers"]:  # share the rotary module but keep plain RoPE

            def use_plain(layer: Any, args: Any, kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs["hidden_states"]
                return args, {**kwargs, "position_embeddings": local(hidden, kwargs["position_ids"])}

            decoder.layers[index].register_forward_pre_hook(use_plain, with_kwargs=True)
        self._coming: list[int] | None = None

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; assisted decoding and prefilling in chunks are refused."""
        settings = generation_config or self.generation_config
        for name in (*_ASSISTED, "prefill_chunk_size"):
            if kwargs.get(name) or getattr(settings, name, None):
                raise ValueError(f"{name} would mix windows in this model; leave it out, or use the longrope package")
        if generation_config is None:  # the window of a step is decided in Python, which is not compiled
            kwargs["disable_compile"] = True
        else:
            generation_config = copy.copy(generation_config)
            generation_config.disable_compile = True
        with _LOCKS.setdefault(self, threading.RLock()):
            try:
                return super().generate(inputs, generation_config, *args, **kwargs)
            finally:
                self._coming = None

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it packs texts of several lengths into one pass, which cannot tell their windows."""
        raise ValueError("continuous batching would mix windows in this model; use generate()")

    def prepare_inputs_for_generation(self, input_ids: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        """As in transformers; before it, drops cached keys that were turned in another window."""
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        embedded = inputs_embeds is not None and kwargs.get("is_first_iteration")
        given = (inputs_embeds if embedded else input_ids).shape
        total = past + (kwargs.get("next_sequence_length") or given[1])
        lengths = _row_lengths(kwargs.get("attention_mask"), given[0], total)
        if past and self._windows(lengths) != getattr(cache, _CACHED, None):
            if inputs_embeds is not None:  # what they stood for need not be the token ids
                grown = input_ids[:, input_ids.shape[1] - (total - inputs_embeds.shape[1]) :]
                added = self.get_input_embeddings()(grown.to(self.device)).to(inputs_embeds)
                inputs_embeds = torch.cat([inputs_embeds, added], dim=1)
                kwargs["is_first_iteration"] = True
            elif input_ids.shape[1] != total:
                raise RuntimeError("the text grew into another window of its RoPE; give generate() all its token ids")
            if isinstance(cache, DynamicCache):  # whose reset() keeps zeroed keys in some versions
                fresh = vars(DynamicCache(config=self.config))
                vars(cache).update({name: fresh[name] for name in ("layers", "layer_class_to_replicate")})
            else:
                cache.reset()
            kwargs["next_sequence_length"] = None
        self._coming = lengths
        return super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    def _windows(self, lengths: list[int]) -> tuple[int, ...]:
        rows = tuple(self._rotary[0].window_of(length) for length in lengths)
        return rows[:1] if len(set(rows)) == 1 else rows

    def _choose_windows(self, decoder: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = (), {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids = kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if ids is None else ids
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        past = cache.get_seq_length() if cache is not None else 0
        lengths, self._coming = self._coming, None
        if lengths is None:
            lengths = _row_lengths(mask, tokens.shape[0], past + tokens.shape[1])
        rows = self._windows(lengths)
        if past and rows != getattr(cache, _CACHED, rows):
            raise RuntimeError("a cached text grew into another window of its RoPE; use generate(), or no cache")
        rotary = decoder.rotary_emb  # in a replica of data parallelism, its own
        rotary.rows, rotary.length = rows, max(lengths)
        if kwargs.get("position_ids") is None and isinstance(mask, torch.Tensor) and mask.ndim == 2:
            # n_hat counts from the first token of a row, not from its padding.
            positions = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
            kwargs = {**kwargs, "position_ids": positions[:, -tokens.shape[1] :]}
        return args, kwargs

    def _mark_cache(self, decoder: Any, args: Any, output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            setattr(cache, _CACHED, decoder.rotary_emb.rows)


def _row_lengths(mask: Any, rows: int, length: int) -> list[int]:
    """Full length of each row: what its padding mask (B, T) counts, or all of it."""
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return [max(count, 1) for count in mask.sum(dim=-1).tolist()]
    if mask is not None:
        raise RuntimeError("the attention mask does not tell how long each row is; give one of (rows, tokens)")
    return [length] * rows


def _register_weight_names() -> None:
    """Some classes keep weights under other names than they had when they were saved; ours stands for such a class."""
    try:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )
    except ImportError:  # older versions know the names by the base class
        return
    names = get_checkpoint_conversion_mapping(Base.__name__)
    if names is not None:
        register_checkpoint_conversion_mapping(LongRopeLlamaForCausalLM.__name__, names, overwrite=True)


_register_weight_names()
