"""Merging: the plain model computes what the adapter did, and belongs to the right model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import PLAIN, factors, load_model, logits, save_model, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from longrope.exceptions import FactorsError, LongRopeError, RunExistsError, SettingsError, UnsupportedModelError
from longrope.finetune import merge as merging
from longrope.finetune.adapters import save_adapter
from longrope.finetune.merge import Adapter, merge
from longrope.finetune.settings import AdapterSettings
from longrope.model.attach import attached
from longrope.model.extended import load
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.rope.policy import FactorSchedule, load_factors


def save_trained(tmp_path: Path, chosen: AdapterSettings | None = None, **model: Any) -> tuple[Any, Path]:
    """A trained adapter in memory and in ``adapter``, of the model in ``model``."""
    folder = save_model(tmp_path / "model", **model)
    adapted = trained(folder, chosen)
    source = ModelSource(str(folder))
    return adapted, save_adapter(adapted, source, factors(model.get("model_type", "llama")), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("model", "chosen"),
    [
        ({}, AdapterSettings()),
        ({"tie_word_embeddings": True}, AdapterSettings()),
        ({"num_key_value_heads": 4}, PLAIN),
        ({"tie_word_embeddings": True}, PLAIN),
        ({}, AdapterSettings(rank=3, alpha=7, targets=("q_proj", "up_proj"))),
        ({"model_type": "phi3"}, AdapterSettings()),
        ({"model_type": "gpt_neox"}, AdapterSettings()),
        ({"model_type": "qwen3", "tie_word_embeddings": True}, AdapterSettings()),
        ({"model_type": "deepseek_v3"}, AdapterSettings()),
    ],
)
def test_merged_model_computes_what_the_adapter_did(
    tmp_path: Path, model: dict[str, Any], chosen: AdapterSettings
) -> None:
    adapted, saved = save_trained(tmp_path, chosen, **model)
    expected = logits(adapted)
    model_type = model.get("model_type", "llama")
    with attached(load_model(tmp_path / "model"), factors(model_type), length=256) as untrained:
        assert (logits(untrained._model) - expected).abs().max() > 0.1
    exported = merge(saved, tmp_path / "merged")
    # Plain transformers, at a length above the pretraining window, and longrope.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").eval()
    assert (logits(plain) - expected).abs().max() < 1e-4
    merged = load(tmp_path / "merged")
    merged.longrope.pin(256)
    assert (logits(merged) - expected).abs().max() < 1e-4
    assert load_factors(tmp_path / "merged" / "longrope.json") == exported.schedule
    rope = read_rope(merged.config, tmp_path / "merged")
    assert rope.present == factors(model_type)


def test_the_folder_is_that_of_the_model_but_for_weights_and_factors(tmp_path: Path) -> None:
    _, saved = save_trained(tmp_path)
    model, merged = tmp_path / "model", tmp_path / "merged"
    (model / "LICENSE").write_text("as you like")
    merge(saved, merged)
    assert (merged / "LICENSE").read_text() == "as you like"
    assert not (merged / "adapter_config.json").exists()
    card = (merged / "README.md").read_text()
    assert "with a LoRA adapter folded in" in card
    # safetensors writes files for their owner alone; models are shared.
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert (saved / "adapter_model.safetensors").stat().st_mode == usual
    assert (merged / "model.safetensors").stat().st_mode == usual
    assert "longrope merge adapter --base model --dtype auto --output FOLDER" in card


def test_sharded_models_stay_sharded_and_only_what_was_trained_changes(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    load_model(folder).save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    adapted = trained(folder, PLAIN)
    source = ModelSource(str(tmp_path / "sharded"))
    merge(save_adapter(adapted, source, factors(), tmp_path / "adapter"), tmp_path / "merged", dtype="fp32")
    before = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    after = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert before == after
    assert len(set(after["weight_map"].values())) > 1
    for name in sorted(set(after["weight_map"].values())):
        old, new = load_file(tmp_path / "sharded" / name), load_file(tmp_path / "merged" / name)
        for weight in old:
            same = torch.equal(old[weight], new[weight])
            assert same != any(part in weight for part in ("q_proj", "k_proj", "v_proj", "o_proj")), weight


def test_dtype(tmp_path: Path) -> None:
    _, saved = save_trained(tmp_path, dtype=torch.bfloat16)
    merge(saved, tmp_path / "auto")
    merge(saved, tmp_path / "exact", dtype="fp32")
    model = load_model(tmp_path / "exact")
    assert {each.dtype for each in model.parameters()} == {model.config.dtype} == {torch.float32}
    auto = load_model(tmp_path / "auto")
    assert {each.dtype for each in auto.parameters()} == {auto.config.dtype} == {torch.bfloat16}
    for (name, exact), rounded in zip(model.named_parameters(), auto.parameters(), strict=True):
        assert torch.equal(exact.to(torch.bfloat16), rounded), name  # rounded once
    with pytest.raises(SettingsError, match="dtype 'int8' is not known"):
        merge(saved, tmp_path / "int8", dtype="int8")


def test_tied_embeddings_that_lie_in_the_files_twice(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    adapted = trained(folder)
    saved = save_adapter(adapted, ModelSource(str(folder)), factors(), tmp_path / "adapter")
    drop(saved, "lm_head")
    merge(saved, tmp_path / "merged")
    plain = load_model(tmp_path / "merged")
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert (logits(plain) - logits(adapted)).abs().max() < 1e-4


def test_n_hat_is_kept_by_code_only(tmp_path: Path) -> None:
    folder, policy = save_model(tmp_path / "model"), factors(n_hat=8)
    adapted = trained(folder, policy=policy)
    saved = save_adapter(adapted, ModelSource(str(folder)), policy, tmp_path / "adapter")
    with pytest.raises(FactorsError, match="n_hat = 8"):
        merge(saved, tmp_path / "merged")
    merge(saved, tmp_path / "merged", code=True)
    merged = load(tmp_path / "merged")
    merged.longrope.pin(256)
    assert (logits(merged) - logits(adapted)).abs().max() < 1e-4


def test_factors_and_base_can_be_given(tmp_path: Path) -> None:
    adapted, saved = save_trained(tmp_path)
    (saved / "longrope.json").unlink()
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "model").rename(elsewhere)
    with pytest.raises(FactorsError, match=r"holds no longrope.json; give .* by --factors"):
        merge(saved, tmp_path / "merged", ModelSource(str(elsewhere)))
    factors().save(tmp_path / "factors.json")
    with pytest.raises(SettingsError, match="model, which is not there; give the model by --base"):
        merge(saved, tmp_path / "merged", factors=tmp_path / "factors.json")
    exported = merge(saved, tmp_path / "merged", ModelSource(str(elsewhere)), factors=tmp_path / "factors.json")
    assert isinstance(exported.schedule, FactorSchedule)
    assert (logits(load_model(tmp_path / "merged")) - logits(adapted)).abs().max() < 1e-4


def test_base_that_changed_is_told(tmp_path: Path) -> None:
    _, saved = save_trained(tmp_path)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, tmp_path / "model" / "model.safetensors")
    with pytest.warns(UserWarning, match="not as it was when the adapter was trained"):
        merge(saved, tmp_path / "merged")


# What is refused


def drop(saved: Path, *parts: str) -> None:
    """Take weights out of an adapter."""
    path = saved / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: each for name, each in weights.items() if not any(part in name for part in parts)}, path)


def pickled(saved: Path) -> None:
    (saved / "adapter_model.safetensors").unlink()
    torch.save({}, saved / "adapter_model.bin")


def change(name: str, value: Any) -> Any:
    def edit(saved: Path) -> None:
        path = saved / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return edit


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (pickled, SettingsError, "holds a pickled adapter, which is never opened"),
        (lambda saved: (saved / "adapter_model.safetensors").unlink(), SettingsError, "holds no adapter_model.safet"),
        (lambda saved: (saved / "adapter_config.json").unlink(), SettingsError, "holds no adapter_config.json; give"),
        (lambda saved: (saved / "adapter_config.json").write_text("{"), SettingsError, "cannot be read"),
        (lambda saved: (saved / "adapter_model.safetensors").write_bytes(b"x" * 9), SettingsError, "cannot be read"),
        (lambda saved: drop(saved, "lora_A"), SettingsError, "expected lora_A and lora_B"),
        (change("peft_type", "IA3"), SettingsError, "of type 'IA3'; only LORA can be merged"),
        (change("use_dora", True), SettingsError, "uses use_dora, which merge does not know"),
        (change("rank_pattern", {"q_proj": 2}), SettingsError, "uses rank_pattern"),
        (change("bias", "all"), SettingsError, "uses bias"),
        (change("r", 0), SettingsError, "expected numbers above 0"),
        (change("base_model_name_or_path", None), SettingsError, "names no model"),
    ],
)
def test_adapters_that_cannot_be_merged(tmp_path: Path, spoil: Any, error: type[LongRopeError], said: str) -> None:
    _, saved = save_trained(tmp_path)
    spoil(saved)
    with pytest.raises(error, match=said) as caught:
        merge(saved, tmp_path / "merged")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"num_hidden_layers": 1}, r"the model has no model.layers.1.\S+, which the adapter was trained on"),
        ({"hidden_size": 32}, r"of the model is \(.*\), and the adapter has \(.*\); give the model .* by --base"),
        ({"tie_word_embeddings": True}, "the adapter has output embeddings of its own"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not as it was when the adapter was trained")
def test_adapter_of_another_model(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    _, saved = save_trained(tmp_path)
    shutil.rmtree(tmp_path / "model")
    save_model(tmp_path / "model", **other)
    with pytest.raises(SettingsError, match=said) as caught:
        merge(saved, tmp_path / "merged")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def test_quantised_base_and_occupied_output(tmp_path: Path) -> None:
    _, saved = save_trained(tmp_path)
    with pytest.raises(RunExistsError):
        merge(saved, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="is quantised; give the model it was made from by --base"):
        merge(saved, tmp_path / "merged")


def test_an_interrupted_merge_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, saved = save_trained(tmp_path)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging.Adapter, "fold", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(saved, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0.01, 100))
def test_folding_adds_the_scaled_product_and_rounds_once(out: int, inputs: int, rank: int, scaling: float) -> None:
    torch.manual_seed(out * 100 + inputs * 10 + rank)
    a, b, weight = torch.randn(rank, inputs), torch.randn(out, rank), torch.randn(out, inputs).bfloat16()
    adapter = Adapter(None, None, None, scaling, {"w": (a, b)}, {"e": a})
    exact = weight.double() + scaling * b.double() @ a.double()
    torch.testing.assert_close(adapter.fold("w", weight).double(), exact, rtol=1e-5, atol=1e-4 * scaling)
    assert adapter.fold("e", a + 1) is a
    assert adapter.fold("other", weight) is weight
