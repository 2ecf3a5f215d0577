"""Hidden pass keys: texts of the right length, numbers where they are meant to be, answers that are told apart."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.demo import model_folder as embedded
from longrope.evaluation.passkey import PasskeySuite
from longrope.evaluation.retrieval import wilson
from longrope.exceptions import SettingsError
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope

SOURCE = ModelSource(str(embedded()))
TOKENIZER = SOURCE.load_tokenizer()


@pytest.mark.parametrize("introduction", [True, False])
def test_a_text_has_its_length_and_its_number(introduction: bool) -> None:
    suite = PasskeySuite([200, 1000], 5, introduction=introduction)
    assert len(suite.items) == 10
    for item in suite.items:
        prompt, number, depth = suite.prompt(TOKENIZER, item.key)
        answer = TOKENIZER(f" {number}.", add_special_tokens=False)["input_ids"]
        assert len(prompt) + len(answer) == item.length
        text = TOKENIZER.decode(prompt, skip_special_tokens=True)
        assert re.findall(r"pass key is (\d{5})\.", text) == [number]
        assert text.startswith("There is an important info") == introduction
        assert text.endswith("What is the pass key? The pass key is")
        start = len("There is an important info hidden") if introduction else 0
        assert text.index(f"The pass key is {number}") / len(text) == pytest.approx(depth, abs=0.35)
        assert text.index(f"The pass key is {number}") >= start


def test_depths_are_spread_over_the_text() -> None:
    suite = PasskeySuite([400], 10)
    depths = [suite.prompt(TOKENIZER, item.key)[2] for item in suite.items]
    assert [int(depth * 10) for depth in depths] == list(range(10))


def test_the_seed_decides_the_numbers() -> None:
    def numbers(seed: int) -> list[str]:
        suite = PasskeySuite([200], 4, seed)
        return [suite.prompt(TOKENIZER, item.key)[1] for item in suite.items]

    assert numbers(1) == numbers(1) != numbers(2)
    assert len(set(numbers(1))) == 4


def test_a_length_without_room() -> None:
    suite = PasskeySuite([20], 1)
    with pytest.raises(SettingsError, match=r"length 20 has no room .* give at least"):
        suite.prompt(TOKENIZER, suite.items[0].key)


def test_the_embedded_model_finds_the_number_in_its_window_and_not_beyond() -> None:
    suite = PasskeySuite([250, 700], 3, introduction=False)
    model, policy = SOURCE.load_model(), read_rope(SOURCE.load_config(), SOURCE.folder()).policy
    rows = [
        {"method": "none", "length": item.length, **suite.measure(model, TOKENIZER, policy, item.key)}
        for item in suite.items
    ]
    assert all(row["answer"].startswith(row["expected"]) == bool(row["correct"]) for row in rows)
    table = suite.table(pd.DataFrame(rows)).set_index("length")
    assert table.loc[250, "accuracy"] == 1.0
    assert table.loc[700, "accuracy"] == 0.0
    assert 0.4 < table.loc[250, "low"] < table.loc[250, "high"] == 1.0


@given(right=st.integers(0, 50), more=st.integers(0, 50))
def test_intervals_of_shares(right: int, more: int) -> None:
    trials = max(right + more, 1)
    low, high = wilson(right, trials)
    share = right / trials
    assert 0 <= low <= share <= high <= 1
    assert high - low < 0.96
    assert wilson(2 * right, 2 * trials)[1] - wilson(2 * right, 2 * trials)[0] < high - low


def test_an_interval_by_hand() -> None:
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
