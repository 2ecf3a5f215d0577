"""Scaling methods: equal to transformers on a plain model, well-behaved on top of factors that are already there."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_cases import any_factors, theirs

from longrope.exceptions import FactorsError, SettingsError
from longrope.rope.factors import RopeFactors, plain_inv_freq
from longrope.rope.methods import DynamicNTK, abf, linear, llama3, ntk, yarn

# rope_theta, rotary_dim, original_length: LLaMA2, LLaMA3, Phi3-mini's partial rotary, the embedded model's size, and
# one in which even the last pair makes whole turns, so that YaRN's ramp ends beyond the pairs
MODELS = [(1e4, 128, 4096), (5e5, 128, 8192), (1e4, 96, 2048), (1e4, 32, 256), (1e4, 32, 131072)]
models = pytest.mark.parametrize("model", MODELS, ids=lambda model: f"theta{model[0]:g}-d{model[1]}-L{model[2]}")

EXTENDING = {
    "linear": linear,
    "ntk": ntk,
    "yarn": yarn,
    "llama3": llama3,
    "abf": lambda present, target_length: abf(present, 100 * present.rope_theta, target_length),
    "dynamic_ntk": lambda present, target_length: DynamicNTK(present).factors_for(target_length),
}


def against(model, rope_type, seq_len=None, **parameters):
    rope_theta, rotary_dim, original_length = model
    return theirs(
        rope_type,
        seq_len=seq_len,
        rope_theta=rope_theta,
        head_dim=rotary_dim,
        max_position_embeddings=original_length,
        **parameters,
    )


@models
@pytest.mark.parametrize("ratio", [1, 2.5, 8, 512])
def test_linear_equals_transformers(model, ratio):
    result = linear(RopeFactors.identity(*model), int(ratio * model[2]))
    inv_freq, attention_factor = against(model, "linear", factor=float(ratio))
    np.testing.assert_allclose(result.inv_freq(), inv_freq, rtol=1e-6)
    assert result.attention_factor == attention_factor


@models
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("length", [0.5, 1, 1.5, 4, 64])
def test_dynamic_ntk_equals_transformers(model, factor, length):
    tokens = int(length * model[2])
    result = DynamicNTK(RopeFactors.identity(*model), factor).factors_for(tokens)
    inv_freq, _ = against(model, "dynamic", seq_len=tokens, factor=factor)
    np.testing.assert_allclose(result.inv_freq(), inv_freq, rtol=1e-6)


@models
def test_ntk_is_plain_rope_under_a_higher_base(model):
    rope_theta, rotary_dim, original_length = model
    result = ntk(RopeFactors.identity(*model), 8 * original_length)
    inv_freq, _ = theirs("default", rope_theta=rope_theta * 8 ** (rotary_dim / (rotary_dim - 2)), head_dim=rotary_dim)
    np.testing.assert_allclose(result.inv_freq(), inv_freq, rtol=1e-6)
    assert result.lambdas[0] == 1.0
    assert result.lambdas[-1] == pytest.approx(8)


def test_ntk_of_a_single_pair_interpolates_it():
    assert ntk(RopeFactors.identity(1e4, 2, 256), 1024).lambdas == (4.0,)


@models
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"beta_fast": 16.0, "beta_slow": 2.0},
        {"beta_fast": 64.0, "beta_slow": 0.5, "truncate": False},
        {"truncate": False},
        {"beta_fast": 8.0, "beta_slow": 8.0, "truncate": False},
        {"attention_factor": 1.25},
    ],
    ids=str,
)
@pytest.mark.parametrize("ratio", [1.5, 16])
def test_yarn_equals_transformers(model, extra, ratio):
    original_length = model[2]
    result = yarn(RopeFactors.identity(*model), int(ratio * original_length), **extra)
    inv_freq, attention_factor = against(
        model, "yarn", factor=float(ratio), original_max_position_embeddings=original_length, **extra
    )
    np.testing.assert_allclose(result.inv_freq(), inv_freq, rtol=1e-6)
    assert result.attention_factor == pytest.approx(attention_factor, rel=1e-12)


@models
@pytest.mark.parametrize("extra", [{}, {"low_freq_factor": 2.0, "high_freq_factor": 32.0}], ids=str)
@pytest.mark.parametrize("ratio", [1.5, 8, 32])
def test_llama3_equals_transformers(model, extra, ratio):
    original_length = model[2]
    result = llama3(RopeFactors.identity(*model), int(ratio * original_length), **extra)
    inv_freq, _ = against(
        model,
        "llama3",
        factor=float(ratio),
        original_max_position_embeddings=original_length,
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0, **extra},
    )
    np.testing.assert_allclose(result.inv_freq(), inv_freq, rtol=1e-6)


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "llama3"])
def test_partial_rotary_equals_transformers(rope_type):
    present = RopeFactors.identity(1e4, 48, 4096)
    target = 4 * 4096
    ours = {
        "linear": linear(present, target),
        "dynamic": DynamicNTK(present, 4.0).factors_for(target),
        "yarn": yarn(present, target),
        "llama3": llama3(present, target),
    }[rope_type]
    extra = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope_type == "llama3" else {}
    if rope_type in ("yarn", "llama3"):
        extra["original_max_position_embeddings"] = 4096
    inv_freq, _ = theirs(rope_type, seq_len=target, head_dim=64, partial_rotary_factor=0.75, factor=4.0, **extra)
    np.testing.assert_allclose(ours.inv_freq(), inv_freq, rtol=1e-6)


@models
def test_abf_is_plain_rope_under_the_new_base(model):
    result = abf(RopeFactors.identity(*model), 8e6, 4 * model[2])
    np.testing.assert_allclose(result.inv_freq(), plain_inv_freq(8e6, model[1]), rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(any_factors(), st.sampled_from(sorted(EXTENDING)), st.floats(1.0, 64.0))
def test_result_belongs_to_the_same_model(present, method, ratio):
    target = math.ceil(ratio * present.target_length)
    result = EXTENDING[method](present, target)
    kept = ("rope_theta", "rotary_dim", "original_length", "n_hat")
    assert [getattr(result, name) for name in kept] == [getattr(present, name) for name in kept]
    assert result.target_length == target
    if method == "yarn":
        assert result.attention_factor == pytest.approx(1 + 0.1 * math.log(max(1.0, target / present.original_length)))
    else:
        assert result.attention_factor == present.attention_factor


@settings(deadline=None, max_examples=50)
@given(any_factors(), st.sampled_from(sorted(set(EXTENDING) - {"abf"})))
def test_present_window_keeps_the_present_lambdas(present, method):
    result = EXTENDING[method](present, present.target_length)
    np.testing.assert_allclose(result.lambdas, present.lambdas, rtol=1e-12)


@settings(deadline=None)
@given(any_factors(), st.sampled_from(sorted(EXTENDING)), st.floats(1.0, 64.0), st.floats(1.0, 8.0))
def test_a_longer_target_never_speeds_a_pair_up(present, method, ratio, more):
    shorter = EXTENDING[method](present, math.ceil(ratio * present.target_length))
    longer = EXTENDING[method](present, math.ceil(ratio * more * present.target_length))
    assert all(b >= a * (1 - 1e-12) for a, b in zip(shorter.lambdas, longer.lambdas, strict=True))


@settings(deadline=None)
@given(any_factors(), st.sampled_from(["linear", "ntk", "yarn", "llama3", "dynamic_ntk"]), st.floats(1.0, 64.0))
def test_no_pair_slows_down_more_than_linear(present, method, ratio):
    target = math.ceil(ratio * present.target_length)
    slowdown = np.divide(EXTENDING[method](present, target).lambdas, present.lambdas)
    assert slowdown.min() >= 1 - 1e-9
    assert slowdown.max() <= target / present.target_length * (1 + 1e-9)


@settings(deadline=None, max_examples=50)
@given(any_factors(), st.sampled_from([linear, ntk]), st.floats(1.0, 64.0), st.floats(1.0, 64.0))
def test_two_stages_equal_one(present, method, first, second):
    middle = math.ceil(first * present.target_length)
    target = math.ceil(second * middle)
    np.testing.assert_allclose(
        method(method(present, middle), target).lambdas, method(present, target).lambdas, rtol=1e-9
    )


@pytest.mark.parametrize("method", [yarn, llama3])
@models
def test_ramp_follows_the_present_frequencies(method, model):
    """Interpolated by 4, the pairs turn as often within four times the window, so the ramp is where it was."""
    plain = RopeFactors.identity(*model)
    window = model[2]
    staged = method(linear(plain, 4 * window), 8 * window)
    np.testing.assert_allclose(staged.lambdas, 4 * np.array(method(plain, 2 * window).lambdas), rtol=1e-9)


def test_yarn_ramp_between_pairs_of_uneven_factors():
    # Turns within the window of 4096: 652, 65.2, 1.63, 0.0163; 8 turns fall between pairs 1 and 2, 0.5 between 2 and 3.
    present = RopeFactors((1, 1, 4, 40), 1e4, 8, 4096, 4096)
    turns = 4096 * present.inv_freq() / (2 * math.pi)
    result = yarn(present, 8192, beta_fast=8, beta_slow=0.5, truncate=False)
    low = 1 + math.log(turns[1] / 8) / math.log(turns[1] / turns[2])
    high = 2 + math.log(turns[2] / 0.5) / math.log(turns[2] / turns[3])
    kept = 1 - (2 - low) / (high - low)
    np.testing.assert_allclose(result.lambdas, [1, 1, 4 / (kept + (1 - kept) / 2), 80], rtol=1e-12)


def test_yarn_attention_factor_counts_the_whole_extension():
    stage = yarn(RopeFactors.identity(1e4, 64, 256), 1024)
    assert yarn(stage, 4096).attention_factor == pytest.approx(0.1 * math.log(16) + 1)


def test_dynamic_ntk_grows_from_the_present_factors():
    present = linear(RopeFactors.identity(1e4, 8, 256), 1024).replace(n_hat=4, attention_factor=1.1)
    policy = DynamicNTK(present)
    assert policy.reference is policy.factors_for(1) is policy.factors_for(1024) is present
    assert policy.factors_for(2048) == ntk(present, 2048)
    assert policy.factors_for(1536).lambdas[-1] == pytest.approx(6)


@pytest.mark.parametrize("method", sorted(set(EXTENDING) - {"dynamic_ntk"}))
def test_shorter_target_is_refused(method):
    present = linear(RopeFactors.identity(1e4, 8, 256), 1024)
    with pytest.raises(FactorsError, match="target length 512 is below the present window of 1k"):
        EXTENDING[method](present, 512)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda present: yarn(present, 512, beta_fast=1, beta_slow=32),
        lambda present: yarn(present, 512, beta_slow=0),
        lambda present: llama3(present, 512, low_freq_factor=4, high_freq_factor=4),
        lambda present: abf(present, 5e3, 512),
        lambda present: abf(present, math.inf, 512),
        lambda present: DynamicNTK(present, 0.5),
        lambda present: DynamicNTK(present, math.nan),
    ],
)
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(SettingsError):
        wrong(RopeFactors.identity(1e4, 8, 256))
