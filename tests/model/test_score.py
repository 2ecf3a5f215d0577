"""Scoring: the same perplexity as transformers' own forward pass, in blocks, without whole logits."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from model_cases import EXTENDED, ORIGINAL, logits_of, longrope_model, random_ids, scaled_model
from torch.nn import functional

from longrope.model import score, scoring_plan
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.model.score import BLOCK, perplexity, score_blocks
from longrope.rope.factors import RopeFactors

PLAIN = RopeFactors.identity(1e4, 16, ORIGINAL)
SLOWER = PLAIN.replace(lambdas=(1, 1, 1.5, 2, 3, 4, 4, 4), target_length=EXTENDED, attention_factor=1.1)
LATE = SLOWER.replace(n_hat=16)

SCALINGS = [("llama", "default"), ("llama", "linear"), ("mistral", "yarn"), ("qwen2", "llama3"), ("phi3", "default")]


@torch.inference_mode()
def theirs(model, ids):
    """Perplexity by a plain forward pass."""
    return math.exp(model(ids, labels=ids, use_cache=False).loss)


def ours(model, ids, factors, mode="exact"):
    nll = score_blocks(model, ids[0], [factors], mode)
    return perplexity(nll.sum(), ids.shape[1] - 1)


@pytest.mark.parametrize(("model_type", "kind"), SCALINGS)
def test_present_factors_score_as_plain_transformers(make_tiny_model, model_type, kind):
    model = scaled_model(make_tiny_model, model_type, kind)
    ids = random_ids(600)
    assert ours(model, ids, read_rope(model.config).present) == pytest.approx(theirs(model, ids), rel=1e-5)


@pytest.mark.parametrize("kind", ["default", "yarn"])
def test_long_sample_scores_as_plain_transformers(make_tiny_model, kind):
    model = scaled_model(make_tiny_model, kind=kind)
    ids = random_ids(4096)
    assert ours(model, ids, read_rope(model.config).present) == pytest.approx(theirs(model, ids), rel=1e-5)


@pytest.mark.parametrize("length", [2, ORIGINAL, ORIGINAL + 1, 300])
@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_longrope_config_scores_as_plain_transformers(make_tiny_model, model_type, length):
    model = longrope_model(make_tiny_model, model_type)
    ids = random_ids(length)
    factors = read_rope(model.config).policy.factors_for(length)
    assert ours(model, ids, factors, "hf") == pytest.approx(theirs(model, ids), rel=1e-5)


def test_factors_decide_the_score(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(300)
    scores = [ours(model, ids, factors) for factors in (PLAIN, SLOWER, LATE, SLOWER.replace(attention_factor=1.0))]
    assert np.diff(sorted(scores)).min() > 1e-3


def test_blocks_hold_the_tokens_they_are_named_for(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(3 * BLOCK + 10)
    nll = functional.cross_entropy(logits_of(model, ids)[0, :-1], ids[0, 1:], reduction="none").double().numpy()
    expected = np.zeros(4)
    for position, value in enumerate(nll, start=1):
        expected[position // BLOCK] += value
    np.testing.assert_allclose(score_blocks(model, ids[0], [PLAIN])[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("length", "blocks"), [(2, 1), (BLOCK, 1), (BLOCK + 1, 2), (2 * BLOCK, 2)])
def test_one_block_for_every_256_tokens(make_tiny_model, length, blocks):
    sums = score_blocks(make_tiny_model(), random_ids(length)[0], [PLAIN])
    assert sums.shape == (1, blocks)
    assert sums.dtype == np.float64
    assert (sums > 0).all()


def test_first_blocks_are_the_score_of_the_prefix(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(1000)[0]
    whole = score_blocks(model, ids, [SLOWER])[0]
    np.testing.assert_allclose(score_blocks(model, ids[: 2 * BLOCK], [SLOWER])[0], whole[:2], rtol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_candidates_of_a_batch_score_as_alone(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    ids = random_ids(600)[0]
    factors = [PLAIN, SLOWER, LATE]
    together = score_blocks(model, ids, factors)
    alone = np.concatenate([score_blocks(model, ids, [each]) for each in factors])
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("as_type", [list, np.asarray, torch.as_tensor])
def test_tokens_of_any_kind(make_tiny_model, as_type):
    model = make_tiny_model()
    ids = random_ids(50)[0]
    np.testing.assert_array_equal(
        score_blocks(model, as_type(ids.tolist()), [PLAIN]), score_blocks(model, ids, [PLAIN])
    )


def head_calls(model, length, factors):
    """First and last position of each slice the head was given, after a plain pass, and the most logits of one call."""
    calls, most = [], 0

    def watch(head, args, logits):
        nonlocal most
        (hidden,) = args
        start = hidden.storage_offset() // hidden.shape[-1]
        calls.append((start, start + hidden.shape[1]))
        most = max(most, logits.numel())

    handle = model.lm_head.register_forward_hook(watch)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scoring_plan, "CPU_CHUNK", length)
            score_blocks(model, random_ids(length)[0], factors)
    finally:
        handle.remove()
    return calls, most


@pytest.mark.parametrize("rows", [1, 3])
def test_logits_never_exist_as_a_whole(make_tiny_model, monkeypatch, rows):
    monkeypatch.setattr(score, "_LOGITS", 1 << 22)
    model = make_tiny_model(vocab_size=4096, hidden_size=16, num_hidden_layers=1)
    peaks = []
    for length in (1100, 2100):
        calls, most = head_calls(model, length, [PLAIN, SLOWER, LATE][:rows])
        assert calls[0][0] == 0
        assert calls[-1][1] == length - 1  # nothing is predicted from the last token
        assert all(before[1] == after[0] for before, after in pairwise(calls))
        peaks.append(most)
    assert peaks[0] == peaks[1] <= 1 << 22


def test_a_slice_of_logits_takes_at_most_128_mib(make_tiny_model):
    model = make_tiny_model(vocab_size=32768, hidden_size=16, num_hidden_layers=1)
    calls, most = head_calls(model, 1300, [PLAIN])
    assert calls == [(0, 1024), (1024, 1299)]
    assert most * 4 == 128 * 2**20


@pytest.mark.parametrize("positions", [16, 100, 256, 300, 700])
def test_slices_do_not_change_the_score(make_tiny_model, monkeypatch, positions):
    model = make_tiny_model()
    ids = random_ids(900)[0]
    expected = score_blocks(model, ids, [SLOWER, LATE])
    monkeypatch.setattr(score, "slice_length", lambda rows, vocabulary: positions)
    np.testing.assert_allclose(score_blocks(model, ids, [SLOWER, LATE]), expected, rtol=1e-6)


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 100), (1, 128256), (8, 32000), (64, 262144)])
def test_slices_are_neither_tiny_nor_huge(rows, vocabulary):
    positions = score.slice_length(rows, vocabulary)
    assert 16 <= positions <= 4096
    assert positions == 16 or rows * vocabulary * positions <= 1 << 25


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003)])
def test_half_precision_is_near_float32(make_tiny_model, tmp_path, dtype, tolerance):
    make_tiny_model(initializer_range=0.05).save_pretrained(tmp_path)
    ids = random_ids(600)[0]
    full = score_blocks(ModelSource(str(tmp_path)).load_model(), ids, [SLOWER])
    half = score_blocks(ModelSource(str(tmp_path), dtype=dtype).load_model(), ids, [SLOWER])
    np.testing.assert_allclose(half, full, rtol=tolerance)
    assert not np.array_equal(half, full)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_of_half_precision_logits_are_taken_in_float32(make_tiny_model, tmp_path, dtype):
    make_tiny_model().save_pretrained(tmp_path)
    model = ModelSource(str(tmp_path), dtype=dtype).load_model()
    ids = random_ids(200)
    assert ours(model, ids, PLAIN) == pytest.approx(theirs(model, ids), rel=1e-5)


def test_model_is_given_back(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(100)
    before, rotary = logits_of(model, ids), model.model.rotary_emb
    score_blocks(model, ids[0], [SLOWER])
    assert model.model.rotary_emb is rotary
    assert torch.equal(logits_of(model, ids), before)


def test_perplexity_of_overflow_is_infinite():
    assert perplexity(20.0, 10) == pytest.approx(math.exp(2))
    assert perplexity(1e6, 10) == math.inf
