"""Loading: refusals in one line, and safetensors only."""

import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from living_tensors import Peak
from model_cases import logits_of, random_ids
from safetensors.torch import load_file, save_file
from tiny_models import rotary_dim

from longrope.exceptions import LongRopeError, SettingsError, UnsupportedModelError
from longrope.model import scoring_plan
from longrope.model.load import ModelSource, resolve_source
from longrope.model.score import score_blocks
from longrope.rope.factors import RopeFactors


@pytest.fixture
def folder(make_tiny_model, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_refused(call, message, error=UnsupportedModelError):
    with pytest.raises(error, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


# Loading


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_model_comes_ready_to_score(folder, dtype):
    model = ModelSource(str(folder), dtype=dtype).load_model()
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_model_is_the_saved_one(make_tiny_model, folder):
    ids = random_ids(20)
    assert torch.equal(logits_of(ModelSource(str(folder)).load_model(), ids), logits_of(make_tiny_model(), ids))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_one_asked_for(folder, attention):
    model = ModelSource(str(folder), attention=attention).load_model()
    assert model.config._attn_implementation == attention


def test_attention_that_cannot_compute_the_model_is_refused(make_tiny_model, tmp_path):
    make_tiny_model("gemma2").save_pretrained(tmp_path)
    told = "'sdpa' cannot compute what model type 'gemma2' needs; use flash_attention_2, or eager, whose memory grows"
    with pytest.raises(SettingsError, match=told):
        ModelSource(str(tmp_path)).load_model()
    assert ModelSource(str(tmp_path), attention="eager").load_model().config._attn_implementation == "eager"


def test_eager_attention_scores_without_the_square_of_the_length(make_tiny_model, monkeypatch):
    """As the refusal of sdpa says."""
    model = make_tiny_model("gemma2", attn_implementation="eager")
    most = {}
    for chunk, length in ((256, 1024), (256, 2048), (4096, 1024), (4096, 2048)):
        monkeypatch.setattr(scoring_plan, "CPU_CHUNK", chunk)
        with Peak(model.parameters()) as peak:
            score_blocks(model, random_ids(length)[0], [RopeFactors.identity(1e4, rotary_dim("gemma2"), 64)])
        most[chunk, length] = peak.most
    assert most[256, 2048] < 2.1 * most[256, 1024]
    assert most[4096, 2048] > 3.5 * most[4096, 1024]


def test_model_with_tied_embeddings_is_complete(make_tiny_model, tmp_path):
    make_tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = ModelSource(str(tmp_path)).load_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_tokenizer_lies_with_the_model(tiny_tokenizer, folder):
    tiny_tokenizer.save_pretrained(folder)
    source = ModelSource(str(folder))
    assert source.load_tokenizer()("abc").input_ids == tiny_tokenizer("abc").input_ids


def test_source_survives_pickling(folder):
    source = resolve_source(str(folder), dtype="bf16", device="cpu")
    assert pickle.loads(pickle.dumps(source)) == source
    assert source == ModelSource(str(folder), None, "bfloat16", "cpu", "sdpa", False)


# Folders that cannot be used


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "~/missing", "a/b/c"])
def test_missing_folder_is_refused(name):
    assert_refused(ModelSource(name).folder, f"model folder {name} does not exist")


def test_model_that_no_one_has_is_refused():
    assert_refused(ModelSource("nobody/has-this-model").folder, "neither a folder nor reachable on the hub")


def test_folder_without_config_is_refused(tmp_path):
    assert_refused(ModelSource(str(tmp_path)).load_config, "holds no config.json")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"model_type": "no-such-type"}', "{}", '{"model_type": "llama", "hidden_size": "wide"}'],
)
def test_config_that_cannot_be_used_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert_refused(ModelSource(str(tmp_path)).load_config, "config.json cannot be used")


def test_refusal_of_a_config_says_what_is_wrong(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    assert_refused(ModelSource(str(tmp_path)).load_config, "'hidden_size' expected int, got str")


def test_folder_without_tokenizer_is_refused(folder):
    assert_refused(ModelSource(str(folder)).load_tokenizer, "tokenizer in .* cannot be loaded")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_refused_and_never_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert_refused(ModelSource(str(folder)).load_model, "safetensors")
    assert not (tmp_path / "sprung").exists()


def test_weights_that_are_cut_off_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert_refused(ModelSource(str(folder)).load_model, "weights in .* cannot be loaded")


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    assert_refused(ModelSource(str(folder)).load_model, "weights in .* cannot be loaded")


def test_weights_that_lack_a_tensor_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert_refused(
        ModelSource(str(folder)).load_model,
        r"lack model.layers.1.mlp.up_proj.weight \(2 missing in all\)",
    )


# Settings


def test_auto_is_float32_on_a_cpu(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    source = resolve_source(str(folder))
    assert (source.device, source.dtype, source.attention) == ("cpu", "float32", "sdpa")


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_auto_is_the_half_precision_that_a_gpu_has(folder, monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_source(str(folder)) == ModelSource(str(folder), dtype=dtype, device="cuda")
    assert resolve_source(str(folder), gpus_per_worker=2).device == "auto"


@pytest.mark.parametrize(
    ("given", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"), ("bfloat16", "bfloat16")]
)
def test_dtype_by_either_name(folder, given, dtype):
    assert resolve_source(str(folder), dtype=given, device="cpu").dtype == dtype


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not known"),
        ({"device": "tpu"}, "device 'tpu' is not known"),
        ({"device": "cuda"}, "torch sees no such device"),
        ({"device": "cuda:1"}, "choose GPUs by CUDA_VISIBLE_DEVICES"),
        ({"device": "mps:0"}, "device 'mps:0' is not known; use auto, cpu, cuda"),
        ({"attention": "fast"}, "attention 'fast' is not known; use sdpa"),
        ({"attention": "flash_attention_2"}, "needs a GPU"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(folder, monkeypatch, settings, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(lambda: resolve_source(str(folder), **settings), message, SettingsError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "fp32", "attention": "flash_attention_2"}, "bfloat16 or float16"),
        ({"dtype": "bf16", "gpus_per_worker": 0}, "contradict each other"),
    ],
)
def test_settings_that_a_gpu_cannot_meet_are_refused(folder, monkeypatch, settings, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert_refused(lambda: resolve_source(str(folder), device="cuda", **settings), message, SettingsError)


def test_gpus_of_other_machines_need_not_be_here(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_source(str(folder), device="cuda", elsewhere=True).dtype == "bfloat16"
    for device, message in (("tpu", "not known"), ("auto", "say --device cuda or --device cpu")):
        with pytest.raises(SettingsError, match=message):
            resolve_source(str(folder), device=device, elsewhere=True)


def test_folder_is_found_from_any_other_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert resolve_source("model", device="cpu", elsewhere=True).name == str(folder)
    assert resolve_source("model", device="cpu").name == "model"


def test_hub_model_is_pinned_to_its_commit(folder, monkeypatch):
    asked = []

    def snapshot_download(name, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision))
        files = ["model.safetensors", "config.json", "pytorch_model.bin", "consolidated.safetensors", "onnx/a.json"]
        wanted = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        assert list(wanted) == ["model.safetensors", "config.json"]
        return shutil.copytree(folder, folder.parent / "snapshots" / "0123abc", dirs_exist_ok=True)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    source = resolve_source("some/model", device="cpu", revision="main")
    assert (source.name, source.revision) == ("some/model", "0123abc")
    source.folder()
    assert asked == [("some/model", "main"), ("some/model", "0123abc")]


def test_refusals_are_errors_of_the_package():
    assert issubclass(UnsupportedModelError, LongRopeError)


@pytest.mark.parametrize(("key", "heard"), [("long_mscale", False), ("long_mscael", True)])
def test_transformers_warns_of_keys_that_are_not_ours(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, heard: bool
) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64, "factor": 2.0, key: 1.1,
    }  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        ModelSource(str(copy)).load_config()
    finally:
        logger.removeHandler(caplog.handler)
    assert any("Unrecognized keys" in record.getMessage() for record in caplog.records) == heard
