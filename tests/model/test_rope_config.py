"""What a config says about RoPE: present factors, pretraining length, present window, rotary dimension."""

import json
import math

import numpy as np
import pytest
from model_cases import LONG, SCALED, SHORT, longrope
from transformers import AutoConfig, LlamaConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope.exceptions import FactorsError, UnsupportedModelError
from longrope.model.load import ModelSource
from longrope.model.rope_config import check_attention_span, read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import DynamicNTK
from longrope.rope.policy import FactorSchedule, FixedFactors, Window

PLAIN = RopeFactors.identity(1e4, 16, 64)


def config_for(model_type="llama", longest=64, rope=None, **changes):
    return AutoConfig.for_model(
        model_type,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, **(rope or {})},
        **{"head_dim": 16, **changes},
    )


def assert_turns_like_transformers(factors, config, kind, length=None):
    """Frequencies and attention factor are those of transformers' own function."""
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, device=None, seq_len=length)
    np.testing.assert_allclose(factors.inv_freq(), inv_freq.double().numpy(), rtol=5e-7)
    assert factors.attention_factor == pytest.approx(attention_factor, rel=1e-12)


def test_plain_rope():
    rope = read_rope(config_for(rope={"rope_theta": 5e5}))
    assert rope.policy == FixedFactors(RopeFactors.identity(5e5, 16, 64))
    assert rope.present == rope.identity() == RopeFactors.identity(5e5, 16, 64)
    assert (rope.original_length, rope.window, rope.rotary_dim, rope.rope_theta) == (64, 64, 16, 5e5)
    assert rope.architecture.model_type == "llama"


@pytest.mark.parametrize(
    ("kind", "longest", "original", "window"),
    [
        ("linear", 256, 64, 256),
        ("yarn", 64, 64, 256),  # the window is what the factor says where the config kept the pretraining length
        ("yarn", 256, 64, 256),
        ("llama3", 256, 64, 256),
        ("llama3", 128, 64, 128),  # like Llama 3.2, whose factor is larger than its window
    ],
)
def test_fixed_scaling(kind, longest, original, window):
    config = config_for(longest=longest, rope={"rope_type": kind, **SCALED[kind]})
    rope = read_rope(config)
    assert isinstance(rope.policy, FixedFactors)
    assert (rope.original_length, rope.window, rope.present.target_length) == (original, window, window)
    assert_turns_like_transformers(rope.present, config, kind)
    assert rope.identity() == PLAIN


@pytest.mark.parametrize("factor", [3.0, 7.7, 32.0])
@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_rounding_makes_no_lambda_fall_or_leave_its_bounds(kind, factor):
    rope = {**SCALED[kind], "rope_type": kind, "factor": factor, "rope_theta": 5e5}
    present = read_rope(config_for(longest=4096, head_dim=128, rope=rope)).present
    assert present.is_monotone
    assert present.lambdas[0] == (1 if kind != "linear" else pytest.approx(factor))
    assert max(present.lambdas) == pytest.approx(factor)


def test_linear_of_a_power_of_two_is_exact():
    assert read_rope(config_for(longest=256, rope={"rope_type": "linear", "factor": 4.0})).present.lambdas == (4.0,) * 8


def test_dynamic_scaling_starts_at_the_configured_length():
    config = config_for(rope={"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32})
    rope = read_rope(config)
    assert rope.policy == DynamicNTK(PLAIN, 2.0)
    assert (rope.original_length, rope.window) == (64, 64)
    assert rope.policy.factors_for(64).lambdas == PLAIN.lambdas
    assert_turns_like_transformers(rope.policy.factors_for(100), config, "dynamic", 100)


@pytest.mark.parametrize(
    ("given", "attention_factor"),
    [
        ({"attention_factor": 1.25}, 1.25),
        ({}, math.sqrt(1 + math.log(4) / math.log(64))),
        ({"factor": None}, math.sqrt(1 + math.log(4) / math.log(64))),
        ({"factor": 2.0}, math.sqrt(1 + math.log(2) / math.log(64))),
    ],
)
def test_longrope_becomes_two_windows(given, attention_factor):
    config = config_for(longest=256, rope=longrope(**given))
    rope = read_rope(config)
    assert [(each.max_length, each.factors.lambdas) for each in rope.policy.windows] == [
        (64, tuple(SHORT)),
        (256, tuple(LONG)),
    ]
    assert [each.factors.attention_factor for each in rope.policy.windows] == [pytest.approx(attention_factor)] * 2
    assert (rope.original_length, rope.window, rope.present.lambdas) == (64, 256, tuple(LONG))
    for length in (64, 65):
        assert_turns_like_transformers(rope.policy.factors_for(length), config, "longrope", length)


def test_top_level_original_length_wins():
    config = config_for(
        longest=256, rope=longrope(original_max_position_embeddings=32), original_max_position_embeddings=128
    )
    assert read_rope(config).policy.describe() == "128, 256"


def test_longrope_for_one_length_has_one_window():
    config = config_for(longest=64, rope=longrope(factor=1.0))
    assert read_rope(config).policy == FactorSchedule((Window(64, PLAIN.replace(lambdas=tuple(SHORT))),))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_head_size_is_explicit_or_follows_from_the_width(model_type):
    assert read_rope(config_for(model_type, head_dim=32)).rotary_dim == 32
    assert read_rope(config_for(model_type, head_dim=None)).rotary_dim == 16


def test_partial_rotary():
    config = config_for("phi3", rope={"partial_rotary_factor": 0.5})
    rope = read_rope(config)
    assert rope.rotary_dim == 8
    assert rope.original_length == 64  # not the 4096 that its config class puts beside it


def test_longrope_json_is_believed_before_the_config(tmp_path):
    config = config_for(longest=256, rope=longrope())
    schedule = FactorSchedule(
        tuple(Window(length, PLAIN.replace(lambdas=(2,) * 8, target_length=length)) for length in (64, 128, 256))
    )
    assert read_rope(config, tmp_path).policy.describe() == "64, 256"
    schedule.save(tmp_path / "longrope.json")
    rope = read_rope(config, str(tmp_path))
    assert rope.policy == schedule
    assert (rope.window, rope.original_length, rope.schedule()) == (256, 64, schedule)
    assert read_rope(config).policy.describe() == "64, 256"


def test_longrope_json_that_does_not_fit_is_refused(tmp_path):
    config = config_for()
    FactorSchedule((Window(64, RopeFactors.identity(5e5, 16, 64)),)).save(tmp_path / "longrope.json")
    with pytest.raises(FactorsError, match="rope_theta"):
        read_rope(config, tmp_path)
    PLAIN.save(tmp_path / "longrope.json")
    with pytest.raises(FactorsError, match="expected a schedule"):
        read_rope(config, tmp_path)


@pytest.mark.parametrize(
    ("target", "windows"),
    [(1024, "64, 256, 1k"), (256, "64, 256"), (128, "64, 128, 256"), (32, "32, 64, 256")],
)
def test_factors_join_the_present_windows(target, windows):
    rope = read_rope(config_for(longest=256, rope=longrope()))
    factors = PLAIN.replace(lambdas=(9,) * 8, target_length=target)
    extended = rope.extended_by(factors)
    assert extended.describe() == windows
    assert extended.factors_for(target) == factors
    assert all(window in extended.windows for window in rope.policy.windows if window.max_length != target)


@pytest.mark.parametrize(
    ("rope", "scaled"),
    [
        ({}, False),
        (longrope(), True),
        ({"rope_type": "linear", "factor": 4.0}, True),
        (longrope(long_factor=[1] * 8), True),
    ],
)
def test_scaled_models_are_known(rope, scaled):
    assert read_rope(config_for(longest=256, rope=rope)).is_scaled == scaled


def test_factors_on_top_of_a_fixed_scaling():
    rope = read_rope(config_for(longest=256, rope={"rope_type": "llama3", **SCALED["llama3"]}))
    factors = PLAIN.replace(lambdas=(9,) * 8, target_length=1024)
    assert rope.extended_by(factors) == FactorSchedule((Window(256, rope.present), Window(1024, factors)))


# Refusals


def assert_refused(config, message):
    with pytest.raises(UnsupportedModelError, match=message) as refusal:
        read_rope(config)
    assert "\n" not in str(refusal.value)


def test_unknown_rope_type_is_refused():
    config = config_for()
    config.rope_parameters["rope_type"] = "mystery"
    assert_refused(config, "'mystery' is not understood; understood: default, linear")


def test_rope_of_its_own_for_each_layer_type_is_refused():
    config = Qwen2Config(num_hidden_layers=2)
    config.rope_parameters = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    assert_refused(config, "for each layer type")


def test_other_models_are_refused():
    assert_refused(AutoConfig.for_model("gpt2"), "no rotary position embedding")
    assert_refused(AutoConfig.for_model("cohere2"), "cannot extend it")


def test_wrong_number_of_factors_is_refused():
    config = config_for(longest=256, rope=longrope())
    config.rope_parameters["short_factor"] = SHORT[:5]
    with pytest.raises(FactorsError, match="5 lambdas given for rotary_dim 16; it needs 8"):
        read_rope(config)


# Configs of transformers 4


def load_v4(folder, model_type="llama", **settings):
    written = {
        "model_type": model_type,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 500000.0,
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(written))
    return read_rope(ModelSource(str(folder)).load_config(), folder)


def test_v4_plain(tmp_path):
    rope = load_v4(tmp_path, rope_scaling=None)
    assert rope.policy == FixedFactors(RopeFactors.identity(5e5, 16, 256))


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_v4_scaling(tmp_path, kind, key):
    rope = load_v4(tmp_path, rope_scaling={key: kind, **SCALED[kind]})
    config = config_for(longest=256, rope={"rope_type": kind, "rope_theta": 5e5, **SCALED[kind]})
    assert (rope.original_length, rope.window, rope.rope_theta) == (64, 256, 5e5)
    assert_turns_like_transformers(rope.present, config, kind)


def test_v4_phi3(tmp_path):
    rope = load_v4(
        tmp_path,
        "phi3",
        rope_scaling={"type": "longrope", "short_factor": SHORT[:4], "long_factor": LONG[:4]},
        original_max_position_embeddings=64,
        partial_rotary_factor=0.5,
    )
    assert rope.rotary_dim == 8
    assert rope.policy.describe() == "64, 256"
    assert rope.policy.factors_for(64).lambdas == tuple(SHORT[:4])
    assert rope.present.lambdas == tuple(LONG[:4])
    assert rope.present.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))


# Attention span


@pytest.mark.parametrize(
    ("model_type", "settings", "change"),
    [
        ("mistral", {"sliding_window": 64}, '"sliding_window" to null'),
        ("phi3", {"sliding_window": 64}, '"sliding_window" to null'),
        (
            "qwen2",
            {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
            '"use_sliding_window" to false and remove "layer_types"',
        ),
        (
            "qwen3",
            {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0},
            '"use_sliding_window" to false and remove "layer_types"',
        ),
    ],
)
def test_sliding_window_shorter_than_the_sequence_is_refused(model_type, settings, change):
    config = config_for(model_type, rope={"partial_rotary_factor": 1.0}, num_hidden_layers=2, **settings)
    check_attention_span(config, 64)
    with pytest.raises(UnsupportedModelError, match=change) as refusal:
        check_attention_span(config, 128)
    assert "last 64 tokens" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": None}),
        ("phi3", {}),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2}),
    ],
)
def test_full_attention_has_no_limit(model_type, settings):
    check_attention_span(config_for(model_type, num_hidden_layers=2, **settings), 1 << 21)


def test_change_that_the_refusal_names_is_enough(tmp_path):
    written = {**config_for("qwen2", sliding_window=64, use_sliding_window=True, max_window_layers=0).to_dict()}
    written |= {"use_sliding_window": False}
    written.pop("layer_types")
    (tmp_path / "config.json").write_text(json.dumps(written))
    check_attention_span(ModelSource(str(tmp_path)).load_config(), 1 << 21)


def test_config_is_left_as_it_was():
    config = LlamaConfig(max_position_embeddings=256, head_dim=16, rope_parameters=longrope(rope_theta=1e4))
    before = config.to_dict()
    read_rope(config)
    assert config.to_dict() == before
