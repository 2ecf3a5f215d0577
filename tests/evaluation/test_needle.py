"""Needles in a haystack, and the loss of the answer to a question about the start of a text."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from longrope.data.needles import needle_sample
from longrope.data.samples import Sample, sample_from_text
from longrope.demo import model_folder as embedded
from longrope.evaluation.needle import NeedleSuite
from longrope.evaluation.needle_perplexity import NeedlePerplexitySuite
from longrope.evaluation.settings import NeedleSettings
from longrope.exceptions import SettingsError
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope

SOURCE = ModelSource(str(embedded()))
TOKENIZER = SOURCE.load_tokenizer()
TEXT = "".join(f"Sentence {number} says nothing of interest. " for number in range(400))
HAYSTACK = np.array(TOKENIZER(TEXT, add_special_tokens=False)["input_ids"], dtype=np.int32)


@pytest.mark.parametrize("digits", [1, 5, 9])
def test_a_needle_stands_between_sentences_at_its_depth(digits: int) -> None:
    depths = (0.0, 0.25, 0.5, 1.0)
    suite = NeedleSuite(HAYSTACK, [200, 1000], depths, 2, digits)
    assert len(suite.items) == 2 * len(depths) * 2
    for item in suite.items:
        prompt, number, depth = suite.prompt(TOKENIZER, item.key)
        assert len(prompt) + len(TOKENIZER(f" {number}.", add_special_tokens=False)["input_ids"]) == item.length
        assert len(number) == digits
        text = TOKENIZER.decode(prompt, skip_special_tokens=True)
        key = re.search(r"magic number of the (\w+) is " + number, text)
        assert key is not None
        assert text.endswith(f"The magic number of the {key[1]} is")
        before, _, after = text.partition(f"\nThe magic number of the {key[1]} is {number}. Remember it")
        if depth < 1:
            assert before.strip() == "" or before.rstrip().endswith(".")
        hidden_in = len(before) + len(after)
        assert len(before) / hidden_in == pytest.approx(depth, abs=0.35 if item.length == 200 else 0.1)
        if depth == 0:
            assert before == ""


def test_texts_differ_and_the_seed_decides_them() -> None:
    def prompts(seed: int) -> list[list[int]]:
        suite = NeedleSuite(HAYSTACK, [200], (0.5,), 3, seed=seed)
        return [suite.prompt(TOKENIZER, item.key)[0] for item in suite.items]

    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)
    assert len({tuple(prompt) for prompt in prompts(1)}) == 3


@pytest.mark.parametrize(
    ("interval", "depths"),
    [
        (50, (0.0, 0.5, 1.0)),
        (100, (0.0, 1.0)),
        (40, (0.0, 0.4, 0.8, 1.0)),
        (10, tuple(index / 10 for index in range(11))),
    ],
)
def test_depths_of_an_interval(interval: float, depths: tuple[float, ...]) -> None:
    assert NeedleSettings(haystack="books", depth_interval=interval).depths() == depths


def test_only_the_answer_of_a_needle_sample_counts() -> None:
    document = sample_from_text(TEXT, TOKENIZER, 300)
    sample = needle_sample(document, TOKENIZER, 200, seed=1)
    assert len(sample.tokens) == 200
    answer = TOKENIZER.decode(sample.tokens[sample.first :])
    text = TOKENIZER.decode(sample.tokens, skip_special_tokens=True)
    assert re.fullmatch(r" ?\d{7}", answer)
    assert re.match(r"\s*The magic number of the \w+ is" + f" {answer.strip()}", text)
    assert "Sentence 3 says" in text
    # Not the same as one of which all tokens count; its prefixes would have no answer.
    assert sample != Sample(sample.name, sample.tokens)
    with pytest.raises(SettingsError, match="no room"):
        needle_sample(document, TOKENIZER, 20, seed=1)


@pytest.mark.parametrize(("frame", "prefix"), [("<eos> <bos> $A", 2), ("$A <eos>", 0)])
def test_special_tokens_stand_in_front_as_they_do_in_any_text(
    frame: str, prefix: int, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    document = sample_from_text(TEXT, tokenizer, 700)
    sample = needle_sample(document, tokenizer, 600, seed=1)
    ids = {each for _, each in special}
    assert [position for position, token in enumerate(sample.tokens.tolist()) if token in ids] == list(range(prefix))
    start = tokenizer("\nThe magic number", add_special_tokens=False)["input_ids"]
    assert sample.tokens[prefix : prefix + len(start)].tolist() == start


def test_needle_perplexity_is_that_of_the_answer_alone() -> None:
    documents = [sample_from_text(TEXT[start:], TOKENIZER, 250, str(start)) for start in (0, 5000)]
    suite = NeedlePerplexitySuite(documents, [150, 250], seed=3)
    model, policy = SOURCE.load_model(), read_rope(SOURCE.load_config(), SOURCE.folder()).policy
    assert [item.length for item in suite.items] == [150, 150, 250, 250]
    for item in suite.items:
        sample = suite.sample(TOKENIZER, item.key)
        ids = torch.tensor(sample.tokens[None].astype(np.int64))
        with torch.inference_mode():
            logits = model(ids).logits[0].double()
        expected = -logits[sample.first - 1 : -1].log_softmax(-1).gather(1, ids[0, sample.first :, None]).sum()
        measured = suite.measure(model, TOKENIZER, policy, item.key)
        assert measured["nll"] == pytest.approx(expected.item(), rel=1e-4)
        assert measured["tokens"] == item.length - sample.first
