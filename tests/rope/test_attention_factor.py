"""Attention factors: transformers' values, and how a setting names one."""

import math

import pytest
from rope_cases import theirs

from longrope.exceptions import SettingsError
from longrope.rope import attention_factor


@pytest.mark.parametrize("ratio", [0.5, 1, 8, 32])
def test_published_formulas_equal_transformers(ratio):
    lists = {"short_factor": [1.0] * 32, "long_factor": [1.0] * 32}
    _, su = theirs("longrope", factor=float(ratio), original_max_position_embeddings=4096, **lists)
    _, yarn = theirs("yarn", factor=float(ratio), original_max_position_embeddings=4096)
    assert attention_factor.su(ratio, 4096) == pytest.approx(su, rel=1e-12)
    assert attention_factor.yarn(ratio) == pytest.approx(yarn, rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("su", math.sqrt(1 + math.log(8) / math.log(256))),
        ("yarn", 1 + 0.1 * math.log(8)),
        ("present", 1.19),
        ("none", 1.0),
        (1.3, 1.3),
        (2, 2.0),
        ("0.9", 0.9),
    ],
)
def test_setting_names_a_value(spec, expected):
    assert attention_factor.resolve(spec, 8, 256, 1.19) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("spec", ["", "SU!", "nan", "inf", 0, -1.0, math.nan, math.inf, True, None, [1.0]])
def test_unknown_setting_is_refused(spec):
    with pytest.raises(SettingsError, match="su, yarn, present, none or a number above 0"):
        attention_factor.resolve(spec, 8, 256, 1.19)


def test_su_needs_an_original_length():
    assert attention_factor.su(1, 1) == 1.0
    with pytest.raises(SettingsError, match="at least 2"):
        attention_factor.su(8, 1)
