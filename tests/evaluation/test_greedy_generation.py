"""Greedy answers: those of a plain loop, under one window for prompt and answer, and no longer than needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.evaluation.generation import check_chat_template, generate, longest_that_fits, prompt_tokens
from longrope.exceptions import SettingsError
from longrope.model.attach import attached
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear, yarn
from longrope.rope.policy import FactorSchedule, Window

IDENTITY = RopeFactors.identity(10000.0, 16, 64)
POLICY = FactorSchedule((Window(40, IDENTITY), Window(100, yarn(IDENTITY, 100)), Window(200, linear(IDENTITY, 200))))
PROMPT = [1, *range(5, 40)]  # 36 tokens


@torch.inference_mode()
def by_hand(model: Any, prompt: list[int], new: int, length: int) -> list[int]:
    """The likeliest token after the whole text, again and again."""
    ids = list(prompt)
    with attached(model, POLICY.factors_for(length)):
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == model.config.eos_token_id:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("new", [4, 10, 70])
def test_one_window_holds_prompt_and_answer(
    make_tiny_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast, new: int
) -> None:
    model = make_tiny_model()
    own = model.generation_config  # with what models bring along
    own.update(repetition_penalty=1.5, suppress_tokens=list(range(5, 60)), num_return_sequences=2, do_sample=True)
    expected = tiny_tokenizer.decode(by_hand(model, PROMPT, new, len(PROMPT) + new), skip_special_tokens=True)
    assert generate(model, tiny_tokenizer, POLICY, PROMPT, new) == expected
    assert model.generation_config is own
    assert len(expected) > 2
    other = by_hand(model, PROMPT, new, 40 if new > 4 else 200)
    assert expected != tiny_tokenizer.decode(other, skip_special_tokens=True)  # the window matters


def test_stopping_early_changes_nothing_before(
    make_tiny_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_tiny_model()
    whole = generate(model, tiny_tokenizer, POLICY, PROMPT, 20)
    seen: list[str] = []

    def stop(text: str) -> bool:
        seen.append(text)
        return len(text) >= 5

    assert generate(model, tiny_tokenizer, POLICY, PROMPT, 20, stop=stop) == whole[:5]
    assert seen == [whole[:count] for count in range(1, 6)]


def test_prompts(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert tiny_tokenizer.decode(prompt_tokens(tiny_tokenizer, "Who?")) == "<bos>Who?"
    with pytest.raises(SettingsError, match="no chat template; leave --chat-template away"):
        check_chat_template(tiny_tokenizer)
    tiny_tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}({{ m['role'] }}) {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} (assistant){% endif %}"
    )
    check_chat_template(tiny_tokenizer)
    ids = prompt_tokens(tiny_tokenizer, "Who?", chat_template=True)
    assert tiny_tokenizer.decode(ids) == "<bos>(user) Who? (assistant)"


@given(most=st.integers(0, 200), largest=st.integers(0, 300), likely=st.integers(0, 300))
def test_the_most_that_fits(most: int, largest: int, likely: int) -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= largest

    assert longest_that_fits(most, fits, likely) == min(most, largest)
    assert max(asked, default=0) <= max(2 * largest, likely, 1)
    assert len(asked) <= 20
