"""The config of an exported folder in both spellings: transformers computes the same from either."""

import json
import logging
import math

import pytest
import torch
from export_cases import factors, logits_of, plain_transformers, save, two_windows
from transformers import AutoConfig

from longrope.exceptions import SettingsError, UnsupportedModelError
from longrope.export.huggingface import export_folder
from longrope.model.attach import attached
from longrope.model.load import ModelSource
from longrope.rope.attention_factor import su
from longrope.rope.policy import FactorSchedule, Window

SU = su(4, 64)
TYPES = ("llama", "qwen2", "phi3", "gemma2", "gemma3_text", "olmo2", "gpt_neox", "stablelm", "glm4", "deepseek_v3")
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
}


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


def read_as_transformers_4(settings):
    """Frequencies below and above the original length and the attention factor, as transformers 4 computes them."""
    names = ("rotary_emb_base", "rotary_pct") if "rotary_pct" in settings else ("rope_theta", "partial_rotary_factor")
    theta, partial = settings[names[0]], settings.get(names[1], 1.0)
    width = settings.get("qk_rope_head_dim") or settings.get("head_dim")
    width = int((width or settings["hidden_size"] // settings["num_attention_heads"]) * partial)
    scaling, original = settings["rope_scaling"], settings["original_max_position_embeddings"]
    ratio = settings["max_position_embeddings"] / original
    attention_factor = scaling.get("attention_factor") or math.sqrt(1 + math.log(ratio) / math.log(original))
    lists = [
        [1 / (value * theta ** (2 * pair / width)) for pair, value in enumerate(scaling[name])]
        for name in ("short_factor", "long_factor")
    ]
    return *lists, attention_factor


@pytest.mark.parametrize("model_type", TYPES)
def test_both_spellings_compute_the_same(make_tiny_model, tmp_path, model_type):
    source = save(make_tiny_model(model_type), tmp_path / "model")
    schedule = two_windows(model_type, SU)
    folders = {
        spelling: export_folder(source, schedule, tmp_path / spelling, config_format=spelling).folder
        for spelling in ("v5", "v4")
    }
    settings = settings_of(folders["v4"])
    assert "rope_parameters" not in settings
    assert settings["rope_scaling"].get("type", settings["rope_scaling"].get("rope_type")) == "longrope"
    short, long, attention_factor = read_as_transformers_4(settings)
    assert short == pytest.approx(schedule.factors_for(64).inv_freq().tolist(), rel=1e-12)
    assert long == pytest.approx(schedule.factors_for(256).inv_freq().tolist(), rel=1e-12)
    assert attention_factor == pytest.approx(SU, rel=1e-12)
    v5, v4 = (plain_transformers(folder) for folder in folders.values())
    plain = plain_transformers(source.folder())
    for length in (64, 65, 130):
        assert torch.equal(logits_of(v4, length), logits_of(v5, length))
        assert (logits_of(v5, length) - logits_of(plain, length)).abs().max() > 1e-3
        if model_type != "gemma2":  # whose local layers plain transformers rescales too
            with attached(plain, schedule, mode="hf"):
                torch.testing.assert_close(logits_of(v5, length), logits_of(plain, length), rtol=1e-5, atol=1e-5)


def test_softmax_scale_of_deepseek_survives_both_spellings(make_tiny_model, tmp_path):
    source = save(make_tiny_model("deepseek_v3", rope=YARN, max_position_embeddings=256), tmp_path / "model")
    schedule = FactorSchedule((Window(512, factors("deepseek_v3", 512, 2.0, attention_factor=1.1)),))
    plain = source.load_model()
    with attached(plain, schedule, mode="hf"):
        expected = logits_of(plain, 100)
    for spelling in ("v5", "v4"):
        exported = export_folder(source, schedule, tmp_path / spelling, config_format=spelling)
        theirs = plain_transformers(exported.folder)
        torch.testing.assert_close(logits_of(theirs, 100), expected, rtol=1e-5, atol=1e-5)


def test_older_spelling_of_llama(make_tiny_model, tmp_path):
    source = save(make_tiny_model(), tmp_path / "model")
    schedule = two_windows()
    settings = settings_of(export_folder(source, schedule, tmp_path / "out", config_format="v4").folder)
    assert settings["rope_scaling"] == {
        "rope_type": "longrope",
        "short_factor": list(schedule.factors_for(64).lambdas),
        "long_factor": list(schedule.factors_for(256).lambdas),
        "original_max_position_embeddings": 64,
        "factor": 4.0,
        "attention_factor": 1.15,
        "short_mscale": 1.15,
        "long_mscale": 1.15,
    }
    assert (settings["rope_theta"], settings["original_max_position_embeddings"]) == (10000.0, 64)
    assert settings["max_position_embeddings"] == 256
    assert settings["torch_dtype"] == "float32"
    assert "dtype" not in settings


def test_older_spelling_of_gemma3_rescales_the_global_layers(make_tiny_model, tmp_path):
    source = save(make_tiny_model("gemma3_text"), tmp_path / "model")
    schedule = two_windows("gemma3_text")
    settings = settings_of(export_folder(source, schedule, tmp_path / "out", config_format="v4").folder)
    assert (settings["rope_theta"], settings["rope_local_base_freq"]) == (10000.0, 1000.0)
    assert settings["rope_scaling"]["long_factor"] == list(schedule.factors_for(256).lambdas)
    v5 = settings_of(export_folder(source, schedule, tmp_path / "v5").folder)["rope_parameters"]
    assert v5["sliding_attention"] == {"rope_type": "default", "rope_theta": 1000.0}
    assert v5["full_attention"]["original_max_position_embeddings"] == 64


@pytest.mark.parametrize(
    ("model_type", "single_list", "said"),
    [
        ("llama", False, "transformers before 4.51 uses one of the two lists"),
        ("llama", True, None),
        ("phi3", False, None),
        ("olmo2", True, "transformers 4 refuses this config"),
    ],
)
def test_what_older_readers_do_with_the_older_spelling_is_said(
    make_tiny_model, tmp_path, model_type, single_list, said
):
    source, schedule = save(make_tiny_model(model_type), tmp_path / "model"), two_windows(model_type, SU)
    options = {"single_list": single_list, "config_only": True}
    v5 = export_folder(source, schedule, tmp_path / "v5", **options).losses
    v4 = export_folder(source, schedule, tmp_path / "v4", config_format="v4", **options).losses
    assert v4[: len(v5)] == v5
    assert len(v4) - len(v5) == (said is not None)
    assert said is None or v4[-1].startswith(said)


def test_older_phi3_takes_three_entries_and_its_own_attention_factor(make_tiny_model, tmp_path):
    source = save(make_tiny_model("phi3"), tmp_path / "model")
    schedule = two_windows("phi3", SU)
    settings = settings_of(export_folder(source, schedule, tmp_path / "out", config_format="v4").folder)
    assert set(settings["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    with pytest.raises(SettingsError, match=r"attention factor su, not 1\.3; use --config-format v5"):
        export_folder(source, two_windows("phi3", 1.3), tmp_path / "other", config_format="v4")
    assert not (tmp_path / "other").exists()


def test_local_layers_that_the_older_spelling_cannot_say_are_refused(make_tiny_model, tmp_path):
    model = make_tiny_model("gemma3_text")
    local = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}
    model.config.rope_parameters = {**model.config.rope_parameters, "sliding_attention": local}
    source = save(model, tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="rope type 'linear'"):
        export_folder(source, two_windows("gemma3_text"), tmp_path / "out", config_format="v4")


def test_an_exported_folder_of_the_older_spelling_is_understood(make_tiny_model, tmp_path):
    first = export_folder(save(make_tiny_model(), tmp_path / "m"), two_windows(), tmp_path / "a", config_format="v4")
    second = export_folder(
        ModelSource(str(first.folder)), factors(target=512, stretch=2.0, attention_factor=1.15), tmp_path / "b"
    )
    assert second.schedule.describe() == "64, 256, 512"
    settings = settings_of(second.folder)
    assert {"rope_scaling", "rope_theta"}.isdisjoint(settings)
    assert settings["rope_parameters"]["rope_theta"] == 10000.0


# The attention factor under the names of vLLM and SGLang


@pytest.mark.parametrize("spelling", ["v5", "v4"])
@pytest.mark.parametrize(("near", "far"), [(1.0, SU), (SU, SU), (1.0, 1.3), (1.3, 1.3), (SU, 1.0)])
def test_mscales_stand_where_the_attention_factor_is_not_su(make_tiny_model, tmp_path, near, far, spelling):
    schedule = FactorSchedule(
        (Window(64, factors(target=64, attention_factor=near)), Window(256, factors(attention_factor=far)))
    )
    source = save(make_tiny_model(), tmp_path / "model")
    settings = settings_of(export_folder(source, schedule, tmp_path / "out", config_format=spelling).folder)
    parameters = settings["rope_parameters" if spelling == "v5" else "rope_scaling"]
    assert parameters["attention_factor"] == far
    mscales = {name: value for name, value in parameters.items() if "mscale" in name}
    assert mscales == ({} if far == SU else {"short_mscale": near, "long_mscale": far})


@pytest.mark.parametrize("attention_factor", [SU, 1.3])
def test_transformers_only_warns_of_the_mscales(make_tiny_model, tmp_path, attention_factor):
    source = save(make_tiny_model(), tmp_path / "model")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    library = logging.getLogger("transformers")
    library.addHandler(handler)
    try:
        exported = export_folder(source, two_windows(attention_factor=attention_factor), tmp_path / "out")
        assert said == []
        assert ModelSource(str(exported.folder)).load_config().rope_parameters["attention_factor"] == attention_factor
        assert said == []  # ours does not warn of what is ours
        AutoConfig.from_pretrained(exported.folder)
    finally:
        library.removeHandler(handler)
    assert len(said) == (0 if attention_factor == SU else 1)
    assert all("short_mscale" in line and "long_mscale" in line for line in said)
