"""Comparison: each method with the factors it would use at each length, and differences document by document."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_search import Fails, InProcessPool
from transformers import LlamaForCausalLM

from longrope.data.samples import Sample
from longrope.model.architectures import ARCHITECTURES
from longrope.model.rope_config import ModelRope
from longrope.model.score import BLOCK, score_blocks
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear, ntk
from longrope.rope.policy import FixedFactors
from longrope.runs.journal import Journal
from longrope.runs.progress import Progress
from longrope.search.baselines import Baseline, published_baselines
from longrope.search.candidate import Candidate
from longrope.search.comparison import (
    MethodResult,
    compare,
    held_out_samples,
    paired_difference,
    report_lengths,
    table,
)
from longrope.search.evaluator import ModelEvaluator
from longrope.search.scorer import Scorer

PLAIN = RopeFactors.identity(10000.0, 16, 256)
TOKENS = np.random.default_rng(0).integers(3, 128, size=(4, 600))
LENGTHS = (256, 512, 600)
SEARCH = (Sample("search", TOKENS[0]),)
HELD_OUT = tuple(Sample(f"held out {index}", row) for index, row in enumerate(TOKENS[1:]))


def published(*names: str) -> list[Baseline]:
    rope = ModelRope(ARCHITECTURES["llama"], FixedFactors(PLAIN), 256)
    return [baseline for baseline in published_baselines(rope, 600) if baseline.name in names]


@pytest.fixture
def lively_llama(make_tiny_llama: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    """With weights so large that its losses depend on the rotations."""
    return make_tiny_llama(max_position_embeddings=256, initializer_range=0.2)


@pytest.fixture
def open_pool(lively_llama: LlamaForCausalLM) -> Callable[..., InProcessPool]:
    def open_(fails: Fails = lambda task: None) -> InProcessPool:
        samples = [*SEARCH, *held_out_samples(HELD_OUT, LENGTHS).values()]
        evaluator = ModelEvaluator(lively_llama, PLAIN, {sample.digest: sample for sample in samples})
        return InProcessPool(lambda: evaluator, fails)

    return open_


def compared(pool: InProcessPool, methods: list[Baseline], folder: Path, held_out=HELD_OUT) -> list[MethodResult]:
    with Journal.create(folder / "journal", {}) as journal:
        return compare(Scorer(pool, journal, Progress()), methods, SEARCH, held_out, LENGTHS)


def direct(model: LlamaForCausalLM, tokens: np.ndarray, factors: RopeFactors) -> float:
    return float(score_blocks(model, tokens, [factors]).sum())


def test_a_prefix_has_the_perplexity_of_a_text_that_ends_there(
    tmp_path: Path, lively_llama: LlamaForCausalLM, open_pool: Callable[..., InProcessPool]
):
    [pi] = compared(open_pool(), published("pi"), tmp_path)
    factors = linear(PLAIN, 600)
    for length in LENGTHS:
        expected = [direct(lively_llama, sample.tokens[:length], factors) for sample in HELD_OUT]
        assert [nll for nll, _ in pi.losses[length]] == pytest.approx(expected, rel=1e-6)
        assert [tokens for _, tokens in pi.losses[length]] == [length - 1] * 3
        assert pi.held_out(length) == pytest.approx(math.exp(sum(expected) / (3 * (length - 1))), rel=1e-6)


def test_factors_that_do_not_depend_on_the_length_need_one_pass_a_document(
    tmp_path: Path, open_pool: Callable[..., InProcessPool]
):
    pool = open_pool()
    compared(pool, published("pi"), tmp_path)
    assert len(pool.asked) == len(SEARCH) + len(HELD_OUT)
    whole = {sample.digest for sample in (*SEARCH, *HELD_OUT)}
    assert {task.sample for task in pool.asked} == whole


def test_dynamic_ntk_is_scored_with_its_own_factors_at_each_length(
    tmp_path: Path, lively_llama: LlamaForCausalLM, open_pool: Callable[..., InProcessPool]
):
    pool = open_pool()
    none, dynamic = compared(pool, published("none", "dynamic-ntk"), tmp_path)
    for length in LENGTHS:
        factors = PLAIN if length == 256 else ntk(PLAIN, length)
        expected = [direct(lively_llama, sample.tokens[:length], factors) for sample in HELD_OUT]
        assert [nll for nll, _ in dynamic.losses[length]] == pytest.approx(expected, rel=1e-9)
    assert dynamic.search == pytest.approx(
        math.exp(direct(lively_llama, SEARCH[0].tokens, ntk(PLAIN, 600)) / 599), rel=1e-9
    )
    # At the pretraining length it is the model as it is, which differs from its factors for 600 tokens.
    assert dynamic.held_out(256) == pytest.approx(none.held_out(256), rel=1e-6)
    assert abs(math.log(dynamic.held_out(600) / none.held_out(600))) > 1e-3
    assert len(pool.asked) == 2 * len(SEARCH) + (1 + 3) * len(HELD_OUT)


def test_a_length_that_could_not_be_scored_on_every_document_has_no_result(
    tmp_path: Path, open_pool: Callable[..., InProcessPool]
):
    lost = HELD_OUT[1].prefix(512).digest
    pool = open_pool(lambda task: "out of memory" if task.sample == lost else None)
    pi, dynamic = compared(pool, published("pi", "dynamic-ntk"), tmp_path)
    assert set(dynamic.losses) == {256, 600}
    assert math.isnan(dynamic.held_out(512))
    assert set(pi.losses) == set(LENGTHS)
    assert paired_difference(pi, dynamic, 512) is None
    assert paired_difference(pi, dynamic, 600) is not None


def test_a_method_that_fails_on_a_search_sample_has_no_perplexity_there(
    tmp_path: Path, open_pool: Callable[..., InProcessPool]
):
    bad = Candidate.from_factors(linear(PLAIN, 600))
    pool = open_pool(lambda task: "nan" if task.candidate == bad else None)
    none, pi = compared(pool, published("none", "pi"), tmp_path)
    assert math.isfinite(none.search)
    assert pi.search == math.inf
    assert pi.losses == {}


def test_without_held_out_documents_only_the_search_samples_are_scored(
    tmp_path: Path, open_pool: Callable[..., InProcessPool]
):
    pool = open_pool()
    none, pi = results = compared(pool, published("none", "pi"), tmp_path, held_out=())
    assert len(pool.asked) == 2
    assert paired_difference(none, pi, 600) is None
    frame = table(results, LENGTHS)
    assert frame["search 600"].notna().all()
    assert frame[["held-out 256", "held-out 512", "held-out 600"]].isna().all(axis=None)


def method(name: str, *losses: tuple[float, int]) -> MethodResult:
    return MethodResult(name, 1.0, 5.0, {100: losses})


def test_paired_difference_by_hand():
    # Per token 0.2, 0.5 and 0.5 against 0.4, 0.4 and 0.9: differences -0.2, 0.1, -0.4.
    first = method("a", (2.0, 10), (10.0, 20), (5.0, 10))
    second = method("b", (4.0, 10), (8.0, 20), (9.0, 10))
    difference = paired_difference(first, second, 100)
    assert difference is not None
    assert difference.documents == 3
    assert difference.mean == pytest.approx(-0.5 / 3)
    # Squared deviations from the mean: 1/900, 64/900, 49/900; over 2, then over 3 documents.
    assert difference.standard_error == pytest.approx(math.sqrt(114 / 900 / 2 / 3))
    assert difference.standard_errors == pytest.approx(-0.5 / 3 / math.sqrt(114 / 900 / 6))
    opposite = paired_difference(second, first, 100)
    assert opposite is not None
    assert opposite.mean == pytest.approx(0.5 / 3)


def test_a_paired_difference_needs_two_documents():
    assert paired_difference(method("a", (2.0, 10)), method("b", (3.0, 10)), 100) is None
    assert paired_difference(method("a"), method("b"), 100) is None
    assert paired_difference(method("a", (2.0, 10), (2.0, 10)), method("b", (3.0, 10), (3.0, 10)), 200) is None


@pytest.mark.parametrize(("nll", "expected"), [(20.0, -math.inf), (30.0, 0.0), (40.0, math.inf)])
def test_equal_differences_have_no_standard_error(nll: float, expected: float):
    first, second = method("a", (nll, 10), (nll, 10)), method("b", (30.0, 10), (30.0, 10))
    difference = paired_difference(first, second, 100)
    assert difference is not None
    assert difference.standard_error == 0
    assert difference.standard_errors == expected


@pytest.mark.parametrize(
    ("original", "target", "expected"),
    [
        (256, 2048, (256, 512, 1024, 2048)),
        (4096, 131072, (4096, 8192, 16384, 32768, 65536, 131072)),
        (256, 600, (256, 512, 600)),
        (64, 600, (256, 512, 600)),  # not 64 and 128: no whole blocks
        (100, 400, (400,)),
        (256, 128, (128,)),
    ],
)
def test_report_lengths(original: int, target: int, expected: tuple[int, ...]):
    assert report_lengths(original, target) == expected


@given(st.integers(1, 10_000), st.integers(2, 100_000))
def test_report_lengths_rise_to_the_target_in_whole_blocks(original: int, target: int):
    lengths = report_lengths(original, target)
    assert lengths[-1] == target
    assert list(lengths) == sorted(set(lengths))
    assert all(length % BLOCK == 0 and length % original == 0 for length in lengths[:-1])


def test_held_out_samples_are_cut_to_every_length():
    cut = held_out_samples(HELD_OUT, LENGTHS)
    assert len(cut) == 9
    for (digest, length), sample in cut.items():
        whole = next(each for each in HELD_OUT if each.digest == digest)
        assert sample.tokens.tolist() == whole.tokens[:length].tolist()
        assert sample.name == whole.name
    assert cut[HELD_OUT[0].digest, 600] is HELD_OUT[0]


def test_the_table_has_a_row_a_method_and_a_column_a_length():
    results = [
        MethodResult("none", 1.0, math.inf, {256: ((10.0, 10),)}),
        MethodResult("yarn", 1.1, 4.0, {256: ((20.0, 10),), 2048: ((30.0, 10),)}),
    ]
    frame = table(results, (256, 2048))
    assert list(frame.columns) == ["method", "attention factor", "search 2k", "held-out 256", "held-out 2k"]
    assert frame["method"].tolist() == ["none", "yarn"]
    assert frame["held-out 256"].tolist() == pytest.approx([math.e, math.e**2])
    assert frame["held-out 2k"].tolist() == pytest.approx([math.nan, math.e**3], nan_ok=True)
    assert frame["search 2k"].tolist() == [math.inf, 4.0]
