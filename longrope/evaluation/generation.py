"""Greedy answers under a window that is pinned for a prompt and all that may follow it.

The window is that of the prompt and of every token that may be generated, from the first pass on, so that nothing
crosses from one window into another, and stopping early changes no factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from longrope.data.tokens import TextEncoder
from longrope.exceptions import SettingsError
from longrope.model.attach import attached
from longrope.rope.policy import RopePolicy


def generate(
    model: Any,
    tokenizer: Any,
    policy: RopePolicy,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    stop: Callable[[str], bool] | None = None,
) -> str:
    """What the model writes after ``prompt``, the likeliest token each time, without special tokens.

    Whatever the model's own generation settings say about sampling, beams or repetition is left out of account; its
    end-of-text tokens are not.

    Args:
        model: without a policy attached.
        prompt: token ids (T,), special tokens included.
        max_new_tokens: the window holds these beside the prompt, however many are written.
        stop: whether the text written so far is enough.
    """
    import torch

    ids = torch.tensor([list(prompt)], device=model.get_input_embeddings().weight.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def enough(written: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
        done = stop is not None and stop(_text(tokenizer, written[0, ids.shape[1] :]))
        return torch.full((1,), done, dtype=torch.bool, device=written.device)

    with torch.inference_mode(), _plain(model), attached(model, policy, length=len(prompt) + max_new_tokens):
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            stopping_criteria=None if stop is None else [enough],
        )
    return _text(tokenizer, written[0, ids.shape[1] :])


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """Leave only the end-of-text tokens of a model's own generation settings, whose penalties would change answers.

    And no warning of texts that are longer than the model was made for, which are what this is about.
    """
    from transformers import GenerationConfig
    from transformers.utils import logging

    own, verbosity = model.generation_config, logging.get_verbosity()
    logging.set_verbosity_error()
    model.generation_config = GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id)
    try:
        yield
    finally:
        model.generation_config = own
        logging.set_verbosity(verbosity)


def check_chat_template(tokenizer: Any) -> None:
    """Raise SettingsError unless the tokenizer has a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise SettingsError("the model's tokenizer has no chat template; leave --chat-template away")


def prompt_tokens(tokenizer: Any, text: str, chat_template: bool = False) -> list[int]:
    """Token ids of a prompt (T,): ``text`` behind the tokenizer's BOS, or as what a user says in a chat."""
    if chat_template:
        said = [{"role": "user", "content": text}]
        chat: list[int] = tokenizer.apply_chat_template(
            said, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return chat
    encoder = TextEncoder(tokenizer)
    return [*encoder.prefix, *encoder.whole(text).tolist()]


def longest_that_fits(most: int, fits: Callable[[int], bool], likely: int = 1) -> int:
    """The largest number of parts, from 0 to ``most``, that ``fits``, where more parts take more room.

    Args:
        fits: is asked as if 0 parts fit.
        likely: about how many will fit; far larger numbers are not tried, for a text may be far too long.
    """
    low, high = 0, min(max(likely, 1), most)
    while high > low and fits(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _text(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))
