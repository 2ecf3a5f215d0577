"""What ``generate`` does about windows on a model with a policy attached.

A sequence that grows while it is generated may leave its window. transformers then goes on with keys that were turned
by the factors of the old one. Here the step that enters another window empties the cache and computes the whole text
under the new factors, once, so that generation with a cache equals generation without one. Or every row gets the
window of its prompt and all new tokens from the start (``reserve``), and nothing is computed twice.
"""

from __future__ import annotations

import copy
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from longrope.exceptions import RunFailedError, SettingsError
from longrope.model.row_lengths import cached_tokens, row_lengths
from longrope.rope.policy import FactorSchedule, FixedFactors

if TYPE_CHECKING:
    from longrope.model.attach import Attachment

Crossing = Literal["recompute", "reserve"]

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")

_LOCKS: weakref.WeakKeyDictionary[Generation, threading.RLock] = weakref.WeakKeyDictionary()
"""One for each model: it holds the windows of one generation at a time, and threads take turns."""


class Generation:
    """Stands in for ``generate`` and ``prepare_inputs_for_generation`` of one model until it is removed."""

    def __init__(self, model: Any, attachment: Attachment, crossing: Crossing) -> None:
        if crossing not in get_args(Crossing):
            raise SettingsError(f"window {crossing!r} is unknown; give {' or '.join(get_args(Crossing))}")
        self._model = model
        self._attachment = attachment
        self._crossing = crossing
        self._generate = model.generate
        self._prepare = model.prepare_inputs_for_generation
        self._running = False
        self._chunk: int | None = None  # tokens of a forward pass, where prompts come in chunks
        self._prompt: tuple[list[int], int] | None = None  # their full lengths, and how many tokens with padding
        self._most_tokens: tuple[str, int] | None = None  # what a row may grow by, or to, where windows are reserved
        self._reserved: list[int] | None = None
        self._coming: list[int] | None = None
        self._methods = {
            "generate": _StandIn(self._generate, self._run),
            "prepare_inputs_for_generation": _StandIn(self._prepare, self._step),
        }
        self._batches = getattr(model, "init_continuous_batching", None)
        if self._batches is not None:
            self._methods["init_continuous_batching"] = _StandIn(self._batches, self._start_batches)
        self._replaced = {name: vars(model)[name] for name in self._methods if name in vars(model)}
        for name, method in self._methods.items():
            setattr(model, name, method)

    def remove(self) -> None:
        """Give the model its own methods back, unless someone has replaced ours since."""
        for name, method in self._methods.items():
            if vars(self._model).get(name) is method:
                delattr(self._model, name)
                if name in self._replaced:
                    setattr(self._model, name, self._replaced[name])

    def take_lengths(self) -> list[int] | None:
        """Full lengths of the rows of the coming forward pass, where it is a step of ``generate``."""
        lengths, self._coming = self._coming, None
        return lengths

    @property
    def _one_window(self) -> bool:
        return self._attachment.is_pinned or isinstance(self._attachment.policy, FixedFactors)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """In place of ``generate``."""
        call = inspect.signature(self._generate).bind(*args, **kwargs)
        given = {**call.arguments, **call.arguments.get("kwargs", {})}
        if not self._setting(given, "disable_compile"):  # the window of a step is decided in Python
            config = copy.copy(given.get("generation_config"))
            if config is None:
                kwargs["disable_compile"] = True
            else:
                config.disable_compile = True
                call.arguments["generation_config"] = config
                args, kwargs = call.args, call.kwargs
        if self._one_window:
            return self._generate(*args, **kwargs)
        with _LOCKS.setdefault(self, threading.RLock()):
            return self._run_in_windows(given, args, kwargs)

    def _run_in_windows(self, given: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._running:  # a draft by the model itself
            return self._generate(*args, **kwargs)
        if self._crossing == "reserve":
            self._most_tokens = self._limit(given)
        else:
            for name in _ASSISTED:
                if self._setting(given, name):
                    raise SettingsError(
                        f"assisted decoding ({name}) drafts tokens across windows; use window='reserve', which gives "
                        "each row the window of its prompt and all new tokens, or leave it out"
                    )
        self._running = True
        config, window = self._model.config, self._model.config.max_position_embeddings
        try:
            if isinstance(self._attachment.policy, FactorSchedule):  # or transformers warns of texts beyond the old one
                config.max_position_embeddings = max(window, self._attachment.policy.windows[-1].max_length)
            self._chunk = self._setting(given, "prefill_chunk_size")
            if self._chunk:
                self._before_chunks(given)
            return self._generate(*args, **kwargs)
        finally:
            self._running = False
            config.max_position_embeddings = window
            self._chunk = self._prompt = self._most_tokens = self._reserved = self._coming = None

    def _start_batches(self, *args: Any, **kwargs: Any) -> Any:
        """In place of ``init_continuous_batching``, where ``generate_batch`` begins."""
        if not self._one_window:
            raise SettingsError(
                "continuous batching packs texts of several lengths into one pass, which cannot tell their windows; "
                "use generate(), or pin(length) before starting"
            )
        assert self._batches is not None
        return self._batches(*args, **kwargs)

    def _step(self, input_ids: Any, **kwargs: Any) -> Any:
        """In place of ``prepare_inputs_for_generation``: before it, decides windows and drops keys that do not fit."""
        if self._one_window:
            return self._prepare(input_ids, **kwargs)
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        past = cached_tokens(cache)
        prompt = kwargs.get("inputs_embeds")
        embeddings = prompt if kwargs.get("is_first_iteration") else None
        rows, given = (int(size) for size in (input_ids if embeddings is None else embeddings).shape[:2])
        new = kwargs.get("next_sequence_length") or given
        total = past + new
        lengths = row_lengths(mask, rows, total)
        if lengths is None:
            raise RunFailedError(
                "the attention mask does not tell how long each row is, so no window can be chosen; give generate() a "
                "padding mask (rows, tokens)"
            )
        lengths = self._full(lengths, total)
        if past and not self._attachment.cache_fits(cache, lengths, new):
            if prompt is not None:  # what its embeddings stood for need not be the token ids
                grown = input_ids[:, input_ids.shape[1] - (total - prompt.shape[1]) :]
                embedded = self._model.get_input_embeddings()(grown.to(self._model.device)).to(prompt)
                kwargs.update(inputs_embeds=torch.cat([prompt, embedded], dim=1), is_first_iteration=True)
            elif input_ids.shape[1] != total:
                raise RunFailedError(
                    f"a sequence grew to {max(lengths)} tokens and into another window, and only its last "
                    f"{input_ids.shape[1]} tokens are known here; give generate() all its token ids, or use "
                    "window='reserve'"
                )
            kwargs["past_key_values"] = self._emptied(cache)
            kwargs["next_sequence_length"] = None
            if self._chunk and prompt is None:
                self._fill(input_ids[:, :-1], lengths, kwargs)
                kwargs["next_sequence_length"] = 1
        if self._running:
            self._coming = lengths
        return self._prepare(input_ids, **kwargs)

    def _fill(self, input_ids: Any, lengths: list[int], kwargs: dict[str, Any]) -> None:
        """Compute the keys of a whole text in chunks, as its prompt was."""
        assert self._chunk
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        for start in range(0, input_ids.shape[1], self._chunk):
            chunk = input_ids[:, start : start + self._chunk]
            stop = start + chunk.shape[1]
            seen = {
                **kwargs,
                "attention_mask": None if mask is None else mask[:, :stop],
                "position_ids": None if positions is None else positions[..., start:stop],
            }
            inputs = self._prepare(chunk, **seen)
            self._coming = lengths
            self._model(**inputs, return_dict=True)

    def _full(self, lengths: list[int], padded: int) -> list[int]:
        """The lengths by which windows are chosen, for rows that hold ``lengths`` tokens so far."""
        if self._prompt is not None:
            prompt, width = self._prompt
            lengths = [max(pair) for pair in zip(lengths, _for_rows(prompt, len(lengths)), strict=True)]
            padded = max(padded, width)
        if self._most_tokens is None:
            return lengths
        if self._reserved is None:
            kind, tokens = self._most_tokens
            new = tokens if kind == "max_new_tokens" else max(tokens - padded, 0)
            self._reserved = [length + new for length in lengths]
        return _for_rows(self._reserved, len(lengths))

    def _emptied(self, cache: Any) -> Any:
        """The same cache with nothing in it, so that whoever handed it in finds the new keys there."""
        from transformers import DynamicCache

        if isinstance(cache, DynamicCache):  # whose reset() keeps zeroed keys in some versions
            fresh = vars(DynamicCache(config=self._model.config))
            vars(cache).update({name: fresh[name] for name in ("layers", "layer_class_to_replicate") if name in fresh})
        else:
            cache.reset()
        if cached_tokens(cache):
            raise RunFailedError(
                f"a text grew into another window, and its {type(cache).__name__} cannot be emptied; use "
                "window='reserve' or a dynamic cache"
            )
        return cache

    def _setting(self, given: dict[str, Any], name: str) -> Any:
        """A setting of this generation, from where transformers takes it."""
        for place in (given, given.get("generation_config"), getattr(self._model, "generation_config", None)):
            value = place.get(name) if isinstance(place, dict) else getattr(place, name, None)
            if value is not None:
                return value
        return None

    def _limit(self, given: dict[str, Any]) -> tuple[str, int]:
        for name in ("max_new_tokens", "max_length"):
            value = self._setting(given, name)
            if value is not None:
                return name, int(value)
        raise SettingsError("window='reserve' has to know how long the text may become; give generate() max_new_tokens")

    def _before_chunks(self, given: dict[str, Any]) -> None:
        """Keep the full lengths of the prompts, which no chunk can tell, and drop keys that do not fit these."""
        prompt = next(
            (value for name in ("inputs", "input_ids", "inputs_embeds") if (value := given.get(name)) is not None), None
        )
        if prompt is None:  # generation from nothing
            return
        mask, cache = given.get("attention_mask"), given.get("past_key_values")
        rows, width = (int(size) for size in (prompt if mask is None else mask).shape[:2])
        lengths = row_lengths(mask, rows, width)
        if lengths is None or (rows > 1 and mask is None):
            raise SettingsError("prompts that are prefilled in chunks need their padding mask; give attention_mask")
        self._prompt = lengths, width
        past = cached_tokens(cache)
        whole = prompt.shape[1] == width  # here, and in no chunk, are all token ids
        if past and whole and not self._attachment.cache_fits(cache, self._full(lengths, width), width - past):
            self._emptied(cache)


class _StandIn:
    """Calls ``method`` under the original's signature, which transformers checks its users by.

    An object and not a function, so that a copy of the model has stand-ins that belong to the copy.
    """

    def __init__(self, original: Callable[..., Any], method: Callable[..., Any]) -> None:
        self.__wrapped__ = original
        self.__doc__ = original.__doc__
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **kwargs)


def _for_rows(lengths: list[int], rows: int) -> list[int]:
    """Lengths of prompts for ``rows`` sequences, several of which may grow from each prompt."""
    return [length for length in lengths for _ in range(rows // len(lengths))]
