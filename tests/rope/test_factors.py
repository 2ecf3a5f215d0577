"""RopeFactors: exact round trips, refused values, and what the fields mean."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_cases import any_factors, theirs

from longrope.exceptions import FactorsError
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import load_factors

PLAIN = RopeFactors.identity(1e4, 8, 256)


def read_quietly(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random lambdas are seldom monotone
        return RopeFactors.from_dict(json.loads(text))


@settings(deadline=None)
@given(any_factors())
def test_json_round_trip_is_exact(factors):
    again = read_quietly(json.dumps(factors.to_dict()))
    assert again == factors
    assert np.array_equal(again.inv_freq(), factors.inv_freq())
    assert hash(again) == hash(factors)


def test_saved_file_loads_with_its_provenance(tmp_path):
    factors = PLAIN.replace(lambdas=(1, 1.5, 2, 8), target_length=2048, provenance={"seed": 3, "results": {"ppl": 9.5}})
    factors.save(tmp_path / "new" / "factors.json")
    again = load_factors(tmp_path / "new" / "factors.json")
    assert again == factors
    assert again.provenance == factors.provenance
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["factors.json"]


@settings(deadline=None)
@given(any_factors(), st.data())
def test_unusable_lambda_is_refused(factors, data):
    index = data.draw(st.integers(0, len(factors.lambdas) - 1))
    bad = data.draw(st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, None, "1.0", True, 10**400]))
    lambdas = list(factors.lambdas)
    lambdas[index] = bad
    with pytest.raises(FactorsError, match="lambda"):
        factors.replace(lambdas=lambdas)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 1.0}, "rope_theta is 1"),
        ({"rope_theta": math.nan}, "rope_theta holds nan"),
        ({"attention_factor": 0.0}, "attention_factor is 0"),
        ({"attention_factor": math.inf}, "attention_factor holds inf"),
        ({"rotary_dim": 7}, "must be even"),
        ({"rotary_dim": 10}, "4 lambdas given for rotary_dim 10; it needs 5"),
        ({"lambdas": (1.0,) * 5}, "5 lambdas given for rotary_dim 8; it needs 4"),
        ({"original_length": 0}, "original_length is 0"),
        ({"target_length": 0}, "target_length 0"),
        ({"target_length": 2.5}, "whole number"),
        ({"n_hat": -1}, "n_hat is -1"),
        ({"n_hat": "4"}, "n_hat holds '4'"),
    ],
)
def test_invalid_field_is_refused(changes, message):
    with pytest.raises(FactorsError, match=message) as caught:
        PLAIN.replace(**changes)
    assert "\n" not in str(caught.value)


def test_values_are_plain_python_numbers_and_immutable():
    factors = RopeFactors(np.ones(4, np.float32), np.float64(1e4), np.int64(8), 256.0, 512, np.int32(4))
    assert factors == PLAIN.replace(target_length=512, n_hat=4)
    assert {type(value) for value in factors.lambdas} == {float}
    assert type(factors.original_length) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        factors.n_hat = 8


def test_n_hat_of_one_is_the_same_as_none():
    assert PLAIN.replace(n_hat=1) == PLAIN
    assert PLAIN.replace(n_hat=1).to_dict() == PLAIN.to_dict()
    assert PLAIN.replace(n_hat=2) != PLAIN


@pytest.mark.parametrize("rope_theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("rotary_dim", [2, 48, 64, 128])
def test_identity_is_plain_rope(rope_theta, rotary_dim):
    factors = RopeFactors.identity(rope_theta, rotary_dim, 4096)
    expected, _ = theirs("default", rope_theta=rope_theta, head_dim=rotary_dim)
    np.testing.assert_allclose(factors.inv_freq(), expected, rtol=1e-6)
    assert factors.ratio == 1.0


@pytest.mark.parametrize("seq_len", [None, 4097])
@pytest.mark.parametrize("partial_rotary_factor", [1.0, 0.75])
def test_lambdas_are_the_factor_lists_of_longrope(seq_len, partial_rotary_factor):
    pairs = int(64 * partial_rotary_factor) // 2
    lists = {"short_factor": np.linspace(1, 3, pairs).tolist(), "long_factor": np.geomspace(1, 40, pairs).tolist()}
    expected, _ = theirs(
        "longrope",
        seq_len=seq_len,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        partial_rotary_factor=partial_rotary_factor,
        **lists,
    )
    factors = RopeFactors(lists["long_factor" if seq_len else "short_factor"], 1e4, 2 * pairs, 4096, 131072)
    np.testing.assert_allclose(factors.inv_freq(), expected, rtol=1e-6)
    assert factors.ratio == 32


def test_factors_of_another_model_do_not_fit():
    PLAIN.check_fits(1e4, 8)
    with pytest.raises(FactorsError, match="rotary_dim 8, the model rotates 16"):
        PLAIN.check_fits(1e4, 16)
    with pytest.raises(FactorsError, match="rope_theta 10000, the model has 500000"):
        PLAIN.check_fits(5e5, 8)


def test_non_monotone_table_loads_with_a_warning():
    factors = PLAIN.replace(lambdas=(1, 3, 2, 4))
    assert not factors.is_monotone
    with pytest.warns(UserWarning, match="not monotone"):
        assert RopeFactors.from_dict(factors.to_dict()) == factors


def text_with(**changes):
    """A factors file with some keys changed, or left out where the value is ...."""
    data = {**PLAIN.to_dict(), **changes}
    return json.dumps({key: value for key, value in data.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ("\x00", "not valid JSON"),
        (text_with(schema_version=2), "schema_version is 2, this longrope reads 1"),
        (text_with(schema_version=True), "schema_version is True"),
        (text_with(schema_version=...), "schema_version is None"),
        (text_with(kind="candidate"), "kind is 'candidate'"),
        (text_with(lambdas=...), "key 'lambdas' is missing"),
        (text_with(rope_theta=...), "key 'rope_theta' is missing"),
        (text_with(lambdas="1234"), "must be a list"),
        (text_with(lambdas=[1, 2]), "2 lambdas given"),
        (text_with(lambdas=[1, 2, 3, [4]]), "expected a number"),
        (text_with(lambdas=[1, 2, 3, math.nan]), "finite"),
        (text_with(lambdas=[1, 2, 3, math.inf]), "finite"),
        (text_with(lambdas=[1, 2, 3, 4]).replace("4]", "1e999]"), "finite"),
        (text_with(lambdas=[1, 2, 3, 10**400]), "finite"),
        (text_with(attention_factor=-math.inf), "finite"),
        (text_with(provenance=[]), "provenance must be an object"),
    ],
)
def test_unusable_file_says_which_and_why(tmp_path, text, message):
    path = tmp_path / "factors.json"
    path.write_text(text)
    with pytest.raises(FactorsError, match=message) as caught:
        load_factors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_file_says_so(tmp_path):
    with pytest.raises(FactorsError, match="does not exist"):
        load_factors(tmp_path / "missing.json")
    with pytest.raises(FactorsError, match="cannot be read"):
        load_factors(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FactorsError, match="not valid JSON"):
        load_factors(tmp_path / "binary.json")
