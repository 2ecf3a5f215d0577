"""``longrope.load``: from folders and from models in memory, with the factors that were asked for or lie there."""

import pytest
import torch
from model_cases import EXTENDED, LONG, ORIGINAL, SHORT, logits_of, longrope_model, random_ids

import longrope
from longrope import FactorSchedule, RopeFactors, Window
from longrope.exceptions import FactorsError, SettingsError, UnsupportedModelError
from longrope.model.attach import attached

FAR = RopeFactors(tuple(LONG), 1e4, 16, ORIGINAL, EXTENDED, n_hat=8, attention_factor=1.1)
SCHEDULE = FactorSchedule((Window(ORIGINAL, FAR.replace(lambdas=tuple(SHORT), n_hat=0)), Window(EXTENDED, FAR)))


@pytest.fixture
def folder(make_tiny_model, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def under(model, policy, ids):
    with attached(model, policy):
        return logits_of(model, ids)


@pytest.mark.parametrize("length", [ORIGINAL, EXTENDED])
def test_schedule_on_a_folder(make_tiny_model, folder, length):
    ids = random_ids(length)
    expected = under(make_tiny_model(), SCHEDULE, ids)
    SCHEDULE.save(folder.parent / "schedule.json")
    for factors in (SCHEDULE, folder.parent / "schedule.json", str(folder.parent / "schedule.json")):
        model = longrope.load(folder, factors)
        assert torch.equal(logits_of(model, ids), expected)
        assert not model.training


def test_factors_join_the_present_window(make_tiny_model, folder):
    model = longrope.load(str(folder), factors=FAR)
    for length, factors in (
        (ORIGINAL, FAR.replace(lambdas=(1.0,) * 8, n_hat=0, attention_factor=1.0)),
        (EXTENDED, FAR),
    ):
        ids = random_ids(length)
        assert torch.equal(logits_of(model, ids), under(make_tiny_model(), factors, ids))


def test_what_lies_in_the_folder(make_tiny_model, folder):
    SCHEDULE.save(folder / "longrope.json")
    ids = random_ids(100)
    expected = under(make_tiny_model(), SCHEDULE, ids)
    assert torch.equal(logits_of(longrope.load(folder), ids), expected)
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert longrope.load(loaded) is loaded
    assert torch.equal(logits_of(loaded, ids), expected)


def test_config_with_lists_needs_no_factors(make_tiny_model):
    model = longrope_model(make_tiny_model, attention_factor=1.1)
    ids = random_ids(ORIGINAL - 4)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, use_cache=False)
    longrope.load(model)
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12).tolist() == expected.tolist()


def test_model_comes_back(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(100)
    before = logits_of(model, ids)
    longrope.load(model, SCHEDULE)
    assert not torch.equal(logits_of(model, ids), before)
    with pytest.raises(SettingsError, match="already has a policy"):
        longrope.load(model, SCHEDULE)
    model.longrope.detach()
    assert torch.equal(logits_of(model, ids), before)


def test_saving_keeps_the_weights_and_the_config(make_tiny_model, tmp_path):
    model = make_tiny_model()
    model.save_pretrained(tmp_path / "before")
    longrope.load(model, SCHEDULE).save_pretrained(tmp_path / "after")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_options_reach_transformers(folder):
    model = longrope.load(folder, SCHEDULE, dtype="bfloat16", attn_implementation="eager", window="reserve")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    with pytest.raises(SettingsError, match="max_new_tokens"):
        model.generate(random_ids(10))


def test_dtype_under_its_old_name(folder):
    assert longrope.load(folder, SCHEDULE, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_attention_that_sees_less_than_the_windows_is_refused(make_tiny_model, tmp_path):
    model = make_tiny_model("mistral", sliding_window=100)
    model.save_pretrained(tmp_path)
    for given in (tmp_path, model):
        with pytest.raises(UnsupportedModelError, match="attends to the last 100 tokens only"):
            longrope.load(given, SCHEDULE)
    model = make_tiny_model("mistral", sliding_window=EXTENDED)
    assert longrope.load(model, SCHEDULE) is model


@pytest.mark.parametrize(
    ("factors", "options", "error", "message"),
    [
        (None, {}, SettingsError, "plain RoPE and no longrope.json; give factors="),
        (FAR.replace(rope_theta=5e5), {}, FactorsError, "rope_theta"),
        ("missing.json", {}, FactorsError, "missing.json does not exist"),
        (SCHEDULE, {"window": "other"}, SettingsError, "window 'other' is unknown"),
        (SCHEDULE, {"mode": "other"}, SettingsError, "mode 'other' is unknown"),
    ],
)
def test_bad_input(folder, factors, options, error, message):
    with pytest.raises(error, match=message) as refusal:
        longrope.load(folder, factors, **options)
    assert "\n" not in str(refusal.value)


def test_options_for_a_loaded_model_are_refused(make_tiny_model):
    with pytest.raises(SettingsError, match="dtype, revision would change how a model is loaded"):
        longrope.load(make_tiny_model(), SCHEDULE, dtype="bfloat16", revision="main")


def test_missing_folder(tmp_path):
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        longrope.load(tmp_path / "nothing", SCHEDULE)
