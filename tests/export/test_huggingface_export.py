"""Exported folders: plain transformers computes from them what the schedule says, and nothing else changes."""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from longrope.exceptions import FactorsError, RunExistsError, UnsupportedModelError
from longrope.export import huggingface
from longrope.export.config import set_longrope
from longrope.export.huggingface import export_folder
from longrope.model.attach import attached
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.rope.attention_factor import su
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window, load_factors

CROSSING = (
    "a generation that crosses 64 tokens goes on with keys of the short list: "
    "plain transformers computes the cache anew for phi3 only (--single-list avoids it)"
)
PLAIN = RopeFactors.identity(1e4, 16, 64)
LAMBDAS = (1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1)
FAR = PLAIN.replace(lambdas=LAMBDAS, target_length=256, attention_factor=1.15, provenance={"seed": 7})
NEAR = PLAIN.replace(lambdas=tuple(1 + (each - 1) / 4 for each in LAMBDAS), attention_factor=1.15)
FARTHER = PLAIN.replace(lambdas=tuple(2 * each for each in LAMBDAS), target_length=512, attention_factor=1.2)


@pytest.fixture
def make_folder(make_tiny_model, tiny_tokenizer, tmp_path):
    """Saves a random model with its tokenizer; gives the source."""

    def make(model_type="llama", **changes):
        folder = tmp_path / model_type
        make_tiny_model(model_type, **changes).save_pretrained(folder)
        tiny_tokenizer.model_max_length = 64
        tiny_tokenizer.save_pretrained(folder)
        return ModelSource(str(folder))

    return make


def tokens(length, seed=0):
    return torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of(model, ids):
    return model(ids, use_cache=False).logits


def plain_transformers(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def for_model(factors, model_type):
    """Factors for half as many pairs where only half of a head turns."""
    if model_type != "phi3":
        return factors
    return factors.replace(lambdas=factors.lambdas[:4], rotary_dim=8)


def checksums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


# What plain transformers computes


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_plain_transformers_computes_what_the_schedule_says(make_folder, tmp_path, model_type):
    source = make_folder(model_type)
    near, far = for_model(NEAR, model_type), for_model(FAR, model_type)
    exported = export_folder(source, FactorSchedule((Window(64, near), Window(256, far))), tmp_path / "out")
    assert exported.losses == (() if model_type == "phi3" else (CROSSING,))
    theirs, ours = plain_transformers(exported.folder), source.load_model()
    for length, factors in ((64, near), (65, far), (200, far)):
        ids = tokens(length)
        with attached(ours, exported.schedule, mode="hf"):
            expected = logits_of(ours, ids)
        torch.testing.assert_close(logits_of(theirs, ids), expected, rtol=1e-5, atol=1e-5)
        with attached(ours, factors, mode="hf"):
            assert torch.equal(logits_of(ours, ids), expected)
        assert (expected - logits_of(ours, ids)).abs().max() > 1e-2


def test_short_prompts_get_the_attention_factor_of_long_ones(make_folder, tmp_path):
    source = make_folder()
    exported = export_folder(source, FAR, tmp_path / "out")
    assert exported.schedule == FactorSchedule((Window(64, PLAIN), Window(256, FAR)))
    assert exported.losses == (
        "sequences of 1 to 64 tokens get attention factor 1.1500 instead of 1.0000: "
        "plain transformers has one for both lists",
        CROSSING,
    )
    theirs, ours, ids = plain_transformers(exported.folder), source.load_model(), tokens(50)
    with attached(ours, PLAIN.replace(attention_factor=1.15), mode="hf"):
        torch.testing.assert_close(logits_of(theirs, ids), logits_of(ours, ids), rtol=1e-5, atol=1e-5)


def test_long_prompts_get_the_attention_factor_of_short_ones_if_wished(make_folder, tmp_path):
    source = make_folder()
    far = FAR.replace(attention_factor=su(4, 64))  # which vLLM would take for both by itself
    exported = export_folder(source, far, tmp_path / "out", attention_factor="short")
    assert exported.losses[0].startswith("sequences of 65 to 256 tokens get attention factor 1.0000 instead of")
    theirs, ours = plain_transformers(exported.folder), source.load_model()
    for ids, factors in ((tokens(50), PLAIN), (tokens(150), far.replace(attention_factor=1.0))):
        with attached(ours, factors, mode="hf"):
            torch.testing.assert_close(logits_of(theirs, ids), logits_of(ours, ids), rtol=1e-5, atol=1e-5)
    written = json.loads((exported.folder / "config.json").read_text())["rope_parameters"]
    assert (written["attention_factor"], written["short_mscale"]) == (1.0, 1.0)
    assert written["long_mscale"] == far.attention_factor
    assert exported.schedule.windows[-1].factors.attention_factor == far.attention_factor
    assert "--attention-factor short" in (exported.folder / "README.md").read_text()


def test_exported_folder_scores_alike_under_our_own_policy(make_folder, tmp_path):
    exported = export_folder(make_folder(), FAR, tmp_path / "out")
    model = plain_transformers(exported.folder)
    ids = tokens(150)
    plain = logits_of(model, ids)
    with attached(model, load_factors(exported.folder / "longrope.json")):
        torch.testing.assert_close(logits_of(model, ids), plain, rtol=1e-5, atol=1e-5)


# What is written


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_config(make_folder, tmp_path, model_type):
    source = make_folder(model_type)
    near, far = for_model(NEAR, model_type), for_model(FAR.replace(target_length=250), model_type)
    folder = export_folder(source, FactorSchedule((Window(64, near), Window(250, far))), tmp_path / "out").folder
    before, after = (json.loads((path / "config.json").read_text()) for path in (source.folder(), folder))
    assert after["rope_parameters"] == {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        **({"partial_rotary_factor": 0.5} if model_type == "phi3" else {}),
        "short_factor": list(near.lambdas),
        "long_factor": list(far.lambdas),
        "original_max_position_embeddings": 64,
        "factor": 250 / 64,
        "attention_factor": 1.15,
        "short_mscale": 1.15,
        "long_mscale": 1.15,
    }
    assert (after["max_position_embeddings"], after["original_max_position_embeddings"]) == (250, 64)
    replaced = {"rope_parameters", "max_position_embeddings", "original_max_position_embeddings"}
    assert {name: value for name, value in after.items() if name not in replaced} == {
        name: value for name, value in before.items() if name not in replaced
    }


def test_weights_are_linked_and_unchanged(make_folder, tmp_path):
    source = make_folder()
    before = checksums(source.folder())
    folder = export_folder(source, FAR, tmp_path / "out").folder
    assert checksums(source.folder()) == before
    assert checksums(folder)["model.safetensors"] == before["model.safetensors"]
    assert os.path.samefile(folder / "model.safetensors", source.folder() / "model.safetensors")
    assert not any(
        os.path.samefile(path, source.folder() / path.name)
        for path in folder.iterdir()
        if path.name != "model.safetensors" and (source.folder() / path.name).exists()
    )


def test_weights_are_copied_where_they_cannot_be_linked(make_folder, tmp_path, monkeypatch):
    def link(path, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    source = make_folder()
    folder = export_folder(source, FAR, tmp_path / "out").folder
    assert not os.path.samefile(folder / "model.safetensors", source.folder() / "model.safetensors")
    assert checksums(folder)["model.safetensors"] == checksums(source.folder())["model.safetensors"]


def test_weights_behind_symbolic_links(make_folder, tmp_path):
    """As the hub's cache keeps them."""
    source = make_folder()
    blob = tmp_path / "blob"
    (source.folder() / "model.safetensors").rename(blob)
    (source.folder() / "model.safetensors").symlink_to(blob)
    written = export_folder(source, FAR, tmp_path / "out").folder / "model.safetensors"
    assert not written.is_symlink()
    assert load_file(written).keys() == load_file(blob).keys()


def test_tokenizer_knows_the_new_length_and_nothing_else_new(make_folder, tmp_path, tiny_tokenizer):
    source = make_folder()
    folder = export_folder(source, FAR, tmp_path / "out").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 256
    assert tokenizer("a text").input_ids == tiny_tokenizer("a text").input_ids
    assert checksums(folder)["tokenizer.json"] == checksums(source.folder())["tokenizer.json"]
    before, after = (json.loads((path / "tokenizer_config.json").read_text()) for path in (source.folder(), folder))
    assert after == {**before, "model_max_length": 256}


def test_model_without_tokenizer(make_tiny_model, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "model")
    folder = export_folder(ModelSource(str(tmp_path / "model")), FAR, tmp_path / "out").folder
    assert not (folder / "tokenizer_config.json").exists()
    assert logits_of(plain_transformers(folder), tokens(10)).isfinite().all()


def test_other_files_come_along_and_foreign_weights_do_not(make_folder, tmp_path):
    source = make_folder()
    foreign = (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.gguf",
        "tf_model.h5",
        "consolidated.safetensors",
        "params.json",
    )
    for name in ("README.md", "LICENSE", *foreign):
        (source.folder() / name).write_text(name)
    (source.folder() / "original").mkdir()
    folder = export_folder(source, FAR, tmp_path / "out").folder
    assert {path.name for path in folder.iterdir()} == {
        "LICENSE",
        "README.md",
        "README.original.md",
        "config.json",
        "generation_config.json",
        "longrope.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_code_of_the_model_may_ignore_the_factors_and_that_is_said(make_folder, tmp_path):
    """The published Phi-3 models have code of their own, and a model type that transformers knows."""
    source = make_folder()
    assert export_folder(source, FAR, tmp_path / "plain").losses[-1] == CROSSING
    path = source.folder() / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    path.write_text(json.dumps(config))
    (source.folder() / "modeling_own.py").write_text("raise RuntimeError")
    *_, last = export_folder(source, FAR, tmp_path / "out").losses
    assert last.startswith("trust_remote_code runs the model's own code, modeling_own.OwnForCausalLM, which may ignore")


def test_exports_without_code_remove_that_of_an_earlier_one(make_folder, tmp_path):
    coded = export_folder(make_folder(), FAR, tmp_path / "coded", code=True).folder
    folder = export_folder(ModelSource(str(coded)), FARTHER, tmp_path / "out").folder
    assert not {"auto_map", "longrope"} & json.loads((folder / "config.json").read_text()).keys()
    assert not (folder / "modeling_longrope.py").exists()
    assert plain_transformers(folder).config.max_position_embeddings == 512


def test_schedule_comes_back(make_folder, tmp_path):
    exported = export_folder(make_folder(), FAR, tmp_path / "deep" / "out")
    loaded = load_factors(exported.folder / "longrope.json")
    assert loaded == exported.schedule
    assert loaded.factors_for(256).provenance == {"seed": 7}
    source = ModelSource(str(exported.folder))
    rope = read_rope(source.load_config(), source.folder())
    assert (rope.policy, rope.window, rope.original_length) == (loaded, 256, 64)


# Further stages


def test_second_stage_keeps_the_windows_below(make_folder, tmp_path):
    first = export_folder(make_folder(), FactorSchedule((Window(64, NEAR), Window(256, FAR))), tmp_path / "first")
    second = export_folder(ModelSource(str(first.folder)), FARTHER, tmp_path / "second")
    assert second.schedule == FactorSchedule((Window(64, NEAR), Window(256, FAR), Window(512, FARTHER)))
    assert load_factors(second.folder / "longrope.json") == second.schedule
    parameters = json.loads((second.folder / "config.json").read_text())["rope_parameters"]
    assert parameters["short_factor"] == list(NEAR.lambdas)
    assert parameters["long_factor"] == list(FARTHER.lambdas)
    assert parameters["factor"] == 8.0
    assert second.losses == (
        "sequences of 1 to 64 tokens get attention factor 1.2000 instead of 1.1500: "
        "plain transformers has one for both lists",
        "sequences of 65 to 256 tokens get the factors of window 512 instead of those of 256: "
        "plain transformers has two lists, divided at 64",
        "sequences of 65 to 256 tokens get attention factor 1.2000 instead of 1.1500: "
        "plain transformers has one for both lists",
        CROSSING,
    )


def test_factors_for_a_shorter_window_do_not_shrink_the_model(make_folder, tmp_path):
    first = export_folder(make_folder(), FARTHER, tmp_path / "first")
    second = export_folder(ModelSource(str(first.folder)), FAR, tmp_path / "second")
    assert second.schedule.describe() == "64, 256, 512"


def test_window_across_the_original_length_serves_both_sides():
    """Readjusted at 128 only: plain transformers uses those factors up to 64, and the long ones from 65."""
    from transformers import LlamaConfig

    config = LlamaConfig(head_dim=16, max_position_embeddings=64)
    losses = set_longrope(config, FactorSchedule((Window(128, NEAR), Window(256, FAR))))
    assert config.rope_parameters["short_factor"] == list(NEAR.lambdas)
    assert losses == (
        "sequences of 65 to 128 tokens get the factors of window 256 instead of those of 128: "
        "plain transformers has two lists, divided at 64",
        CROSSING,
    )


def test_schedule_of_one_window_uses_it_for_both_lists():
    from transformers import LlamaConfig

    config = LlamaConfig(head_dim=16, max_position_embeddings=64)
    assert set_longrope(config, FactorSchedule((Window(256, FAR),))) == ()
    assert config.rope_parameters["short_factor"] == config.rope_parameters["long_factor"] == list(LAMBDAS)


# n_hat


def test_sliding_window_shorter_than_the_factors_is_refused(make_folder, tmp_path):
    source = make_folder("mistral", sliding_window=100)
    with pytest.raises(UnsupportedModelError, match="attends to the last 100 tokens only") as refusal:
        export_folder(source, FAR, tmp_path / "out")
    assert 'set "sliding_window" to null' in str(refusal.value)
    assert not (tmp_path / "out").exists()


RESULTS = {
    "best_without_n_hat": {"lambdas": [1.5] * 8, "n_hat": 0, "attention_factor": 1.15},
    "methods": [
        {"method": "longrope", "search_perplexity": 5.25},
        {"method": "longrope, n_hat = 0", "search_perplexity": 5.5},
    ],
}


def test_n_hat_is_refused_with_an_offer(make_folder, tmp_path):
    factors = FAR.replace(n_hat=4, provenance={"results": RESULTS})
    with pytest.raises(FactorsError, match="add --without-n-hat") as refusal:
        export_folder(make_folder(), factors, tmp_path / "out")
    assert "n_hat = 4" in str(refusal.value)
    assert "(perplexity 5.5000 instead of 5.2500), or --code, which keeps n_hat" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_n_hat_is_replaced_on_demand(make_folder, tmp_path):
    factors = FAR.replace(n_hat=4, provenance={"seed": 7, "results": RESULTS})
    exported = export_folder(make_folder(), factors, tmp_path / "out", without_n_hat=True)
    used = exported.schedule.factors_for(256)
    assert used == FAR.replace(lambdas=(1.5,) * 8)
    assert used.provenance["seed"] == 7
    assert "n_hat = 0" in used.provenance["replaced"]
    parameters = json.loads((exported.folder / "config.json").read_text())["rope_parameters"]
    assert parameters["long_factor"] == [1.5] * 8


@pytest.mark.parametrize("provenance", [{}, {"results": {"best_without_n_hat": None}}])
@pytest.mark.parametrize("replace", [False, True])
def test_n_hat_without_alternative_is_refused(make_folder, tmp_path, provenance, replace):
    factors = FAR.replace(n_hat=4, provenance=provenance)
    with pytest.raises(FactorsError, match="names no candidate with n_hat = 0; search with --n-hat 0"):
        export_folder(make_folder(), factors, tmp_path / "out", without_n_hat=replace)


# Refusals


@pytest.mark.parametrize("factors", [FAR, FactorSchedule((Window(256, FAR),))])
def test_factors_of_another_model_are_refused(make_folder, tmp_path, factors):
    with pytest.raises(FactorsError, match="rope_theta"):
        export_folder(make_folder(rope={"rope_theta": 5e5}), factors, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("schedule", [False, True])
def test_factors_over_another_pretraining_length_are_refused(make_folder, tmp_path, schedule):
    factors = FAR.replace(original_length=128)
    with pytest.raises(FactorsError, match="original_length 128, the model was pretrained on 64 tokens"):
        export_folder(make_folder(), FactorSchedule((Window(256, factors),)) if schedule else factors, tmp_path / "out")


@pytest.mark.parametrize("occupied", ["folder", "file"])
def test_output_that_holds_something_is_refused(make_folder, tmp_path, occupied):
    output = tmp_path / "out"
    if occupied == "folder":
        output.mkdir()
        (output / "precious").write_text("1")
    else:
        output.write_text("1")
    with pytest.raises(RunExistsError, match="exists and is not empty"):
        export_folder(make_folder(), FAR, output)
    assert (output / "precious").exists() or output.is_file()


def test_model_folder_itself_is_refused(make_folder):
    source = make_folder()
    before = checksums(source.folder())
    with pytest.raises(RunExistsError):
        export_folder(source, FAR, source.folder())
    assert checksums(source.folder()) == before


def test_empty_output_folder_is_filled(make_folder, tmp_path):
    (tmp_path / "out").mkdir()
    assert (export_folder(make_folder(), FAR, tmp_path / "out").folder / "config.json").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_export_leaves_nothing_behind(make_folder, tmp_path, monkeypatch, error):
    source = make_folder()
    before = checksums(source.folder())
    place = huggingface._place

    def stop_at_the_weights(path, target, link):
        if link:
            raise error
        place(path, target, link)

    monkeypatch.setattr(huggingface, "_place", stop_at_the_weights)
    with pytest.raises(error):
        export_folder(source, FAR, tmp_path / "outputs" / "out")
    assert list((tmp_path / "outputs").iterdir()) == []
    assert checksums(source.folder()) == before
