"""A model under a policy as lm-evaluation-harness asks it: windows by full length, equal to plain HFLM within one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from longrope.evaluation import harness_model as module
from longrope.evaluation.harness_model import BATCH_TOKENS, batches, harness_model
from longrope.evaluation.harness_responses import Responses
from longrope.exceptions import SettingsError
from longrope.model.attach import attached
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import DynamicNTK, yarn
from longrope.rope.policy import FactorSchedule, FixedFactors, RopePolicy, Window

IDENTITY = RopeFactors.identity(10000.0, 16, 64)
SCHEDULE = FactorSchedule((Window(64, IDENTITY), Window(256, yarn(IDENTITY, 256))))
NONE = FixedFactors(IDENTITY)


@pytest.fixture
def model(make_tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """A window of 64 tokens."""
    return make_tiny_model()


@pytest.fixture
def ask(model: Any, tiny_tokenizer: Any) -> Callable[..., Any]:
    """A model that the harness can ask, under a policy."""

    def make(policy: RopePolicy = SCHEDULE, batch_size: int = 4, max_length: int = 256, **others: Any) -> Any:
        responses = others.get("responses") or Responses()
        return harness_model(model, tiny_tokenizer, policy, max_length, batch_size, responses)

    return make


@pytest.fixture
def plain(model: Any, tiny_tokenizer: Any) -> Callable[..., HFLM]:
    """The harness's own model of transformers."""

    def make(max_length: int = 256, batch_size: int = 1) -> HFLM:
        return HFLM(pretrained=model, tokenizer=tiny_tokenizer, max_length=max_length, batch_size=batch_size)

    return make


def text(letters: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(ascii_letters, k=letters))


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("task", number, 1))
        for number, each in enumerate(arguments)
    ]


def choices(*letters: int) -> list[tuple[str, str]]:
    """Continuations of each of several contexts: of one token and of several."""
    return [(text(count, count), choice) for count in letters for choice in ("a", "b", "continued")]


SHORT, LONG = choices(3, 20, 50), choices(90, 200)


def likelihoods(lm: Any, pairs: list[tuple[str, str]]) -> list[float]:
    return [likelihood for likelihood, _ in lm.loglikelihood(requests("loglikelihood", pairs))]


def test_factors_change_long_inputs_and_leave_short_ones(ask: Any) -> None:
    with_factors, without = (likelihoods(ask(policy), [*SHORT, *LONG]) for policy in (SCHEDULE, NONE))
    assert with_factors[: len(SHORT)] == pytest.approx(without[: len(SHORT)], abs=1e-4)
    assert all(abs(a - b) > 0.01 for a, b in zip(with_factors[len(SHORT) :], without[len(SHORT) :], strict=True))


def test_short_inputs_equal_plain_hflm(ask: Any, plain: Any) -> None:
    pairs = [*SHORT, ("", "the river runs"), ("a context with a space ", "at its end")]
    expected = plain(batch_size=3).loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    found = ask().loglikelihood(requests("loglikelihood", pairs))
    assert [likelihood for likelihood, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_long_inputs_equal_plain_hflm_under_their_window(ask: Any, plain: Any, model: Any) -> None:
    with attached(model, SCHEDULE, length=256):
        expected = plain().loglikelihood(requests("loglikelihood", LONG), disable_tqdm=True)
    assert likelihoods(ask(), LONG) == pytest.approx([value for value, _ in expected], abs=1e-3)


def test_greedy_continuations_are_known_as_such(ask: Any) -> None:
    prompt = text(70)
    generated = ask().generate_until(requests("generate_until", [(prompt, {"max_gen_toks": 6, "until": []})]))[0]
    assert len(generated) == 6
    pairs = [(prompt, generated), (prompt, generated[:-1] + ("y" if generated[-1] == "x" else "x"))]
    found = ask().loglikelihood(requests("loglikelihood", pairs))
    assert [greedy for _, greedy in found] == [True, False]


@pytest.mark.parametrize("policy", [SCHEDULE, DynamicNTK(IDENTITY, 4.0)])
def test_the_batch_size_changes_no_number(ask: Any, policy: RopePolicy) -> None:
    mixed = random.Random(1).sample([*SHORT, *LONG], len(SHORT) + len(LONG))
    alone = likelihoods(ask(policy, batch_size=1), mixed)
    assert likelihoods(ask(policy, batch_size=7), mixed) == pytest.approx(alone, abs=1e-3)


def test_logits_exist_for_continuations_only(ask: Any, model: Any) -> None:
    seen: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    likelihoods(ask(), LONG)
    hook.remove()
    assert 0 < sum(seen) <= 10 * len(LONG)


def test_one_question_is_read_once_for_all_its_letters(ask: Any, model: Any) -> None:
    rows: list[int] = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    likelihoods(ask(), [("the river runs to", letter) for letter in "ABCD"])
    hook.remove()
    assert rows == [1]


@pytest.mark.parametrize(("policy", "max_length"), [(NONE, 50), (SCHEDULE, 50), (SCHEDULE, 100)])
def test_rolling_likelihoods_equal_plain_hflm(
    ask: Any, plain: Any, model: Any, policy: RopePolicy, max_length: int
) -> None:
    given = requests("loglikelihood_rolling", [(text(240),), (text(150, 5),)])
    with attached(model, policy, length=max_length):  # as long as all windows of these texts
        expected = plain(max_length).loglikelihood_rolling(given, disable_tqdm=True)
    assert ask(policy, max_length=max_length).loglikelihood_rolling(given) == pytest.approx(expected, rel=1e-5)


def test_a_generation_is_in_the_window_of_prompt_and_answer(ask: Any, model: Any, tiny_tokenizer: Any) -> None:
    prompts = [text(5), text(50, 2), text(100, 3)]  # ends in the short window; crosses; begins beyond
    expected = []
    for prompt in prompts:
        ids = tiny_tokenizer(prompt, return_tensors="pt")["input_ids"]
        with attached(model, SCHEDULE, length=ids.shape[1] + 20), torch.inference_mode():
            new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        expected.append(tiny_tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True))
    given = requests("generate_until", [(prompt, {"max_gen_toks": 20, "until": []}) for prompt in prompts])
    for batch_size in (1, 3):
        assert ask(batch_size=batch_size).generate_until(given) == expected
    without = ask(NONE).generate_until(given)
    assert without[0] == expected[0]
    assert without[1] != expected[1]
    assert without[2] != expected[2]


def test_what_is_cut_is_counted(ask: Any, plain: Any, model: Any) -> None:
    lm = ask(max_length=80)
    with attached(model, SCHEDULE, length=80):
        expected = plain(80).loglikelihood(requests("loglikelihood", LONG), disable_tqdm=True)
    assert likelihoods(lm, LONG) == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert lm.truncated == {"task": set(range(len(LONG)))}
    lm = ask(max_length=80)
    likelihoods(lm, SHORT)
    lm.generate_until(requests("generate_until", [(text(count), {"max_gen_toks": 8}) for count in (5, 75, 5)]))
    assert lm.truncated == {"task": {1}}


def test_no_room_for_a_prompt(ask: Any) -> None:
    with pytest.raises(SettingsError, match=r"256 tokens are to be generated.* give a larger --max-length"):
        ask().generate_until(requests("generate_until", [("a", {"until": []})]))
    with pytest.raises(SettingsError, match="give a larger --max-length"):
        likelihoods(ask(max_length=8), [("the", text(20))])


def test_what_was_answered_is_not_asked_again(ask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scored: list[int] = []
    score = module.score_continuations

    def stop_at_the_third(*arguments: Any) -> Any:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(len(arguments[2]))
        return score(*arguments)

    path = tmp_path / "responses" / "task.jsonl"
    pairs = [*SHORT, *LONG]
    monkeypatch.setattr(module, "score_continuations", stop_at_the_third)
    with Responses(path) as responses, pytest.raises(KeyboardInterrupt):
        likelihoods(ask(responses=responses, max_length=80), pairs)
    before = sum(scored)
    scored.clear()
    monkeypatch.setattr(module, "score_continuations", lambda *given: scored.append(len(given[2])) or score(*given))
    with Responses(path) as responses:
        lm = ask(responses=responses, max_length=80)
        found = likelihoods(lm, pairs)
        assert 0 < before < len(pairs)
        assert before + sum(scored) == len(pairs)
        scored.clear()
        assert likelihoods(lm, pairs) == found
        assert not scored
        # Some were cut, and answered, before it was stopped.
        assert lm.truncated["task"] == set(range(len(SHORT), len(pairs)))


def test_a_file_that_another_worker_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    with Responses(path) as first, Responses(path) as second:
        first.add_partial("loglikelihood", ("a", "b"), [1.0, True])
        second.add_partial("loglikelihood", ("a", "c"), [2.0, True])
    with Responses(path) as again:
        assert again.get("loglikelihood", ("a", "b")) == [1.0, True]
        assert again.get("loglikelihood", ("a", "c")) is None


@given(lengths=st.lists(st.integers(1, 40_000), max_size=40), size=st.integers(1, 9))
def test_batches_hold_every_sequence_once_and_one_window(lengths: list[int], size: int) -> None:
    far = yarn(RopeFactors.identity(10000.0, 8, 4096), 40_000)
    policy = FactorSchedule((Window(4096, RopeFactors.identity(10000.0, 8, 4096)), Window(40_000, far)))
    found = list(batches(policy, lengths, size))
    assert sorted(number for batch in found for number in batch) == list(range(len(lengths)))
    for batch in found:
        these = [lengths[number] for number in batch]
        assert len(batch) <= size
        assert len(batch) == 1 or max(these) * len(batch) <= BATCH_TOKENS
        assert len({length <= 4096 for length in these}) == 1
        assert these[0] == max(these)
