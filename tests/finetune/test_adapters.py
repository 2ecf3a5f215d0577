"""Adapters: what is trained, that nothing changes at the start, and that plain PEFT reads what is saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import PLAIN, factors, load_model, logits, save_model, trained
from peft import PeftModel
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM

from longrope.exceptions import RunExistsError, SettingsError
from longrope.finetune import adapters
from longrope.finetune.activation_checkpointing import checkpoint_activations
from longrope.finetune.adapters import add_adapters, embeddings_and_norms, quantization, save_adapter, targets
from longrope.finetune.settings import AdapterSettings
from longrope.model.architectures import ARCHITECTURES
from longrope.model.attach import attach, attached
from longrope.model.load import ModelSource
from longrope.rope.policy import FactorSchedule, load_factors

_OTHER_PROJECTIONS = {
    "phi3": {"qkv_proj", "o_proj"},
    "gpt_neox": {"query_key_value", "dense"},
    "deepseek_v3": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
}


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_projections_embeddings_and_norms_of_every_architecture(model_type: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, tie_word_embeddings=False))
    expected = _OTHER_PROJECTIONS.get(model_type, {"q_proj", "k_proj", "v_proj", "o_proj"})
    assert set(targets(model, AdapterSettings())) == expected
    add_adapters(model, AdapterSettings(), "lora")
    for name, parameter in model.named_parameters():
        if "original_module" not in name:
            adapted = "lora_" in name
            in_full = "modules_to_save" in name
            assert parameter.requires_grad == (adapted or in_full), name
            assert in_full == ("norm" in name or name.split(".")[-4] in ("embed_tokens", "embed_in", "lm_head")), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("settings", [AdapterSettings(), PLAIN], ids=["embeddings and norms", "plain"])
def test_nothing_changes_at_the_start_and_the_policy_stays(
    tmp_path: Path, tied: bool, settings: AdapterSettings
) -> None:
    model = load_model(save_model(tmp_path / "model", tie_word_embeddings=tied))
    with attached(model, factors(), length=256):
        rescaled = logits(model)
    attachment = attach(model, factors())
    attachment.pin(256)
    adapted = add_adapters(model, settings, "lora")
    assert torch.equal(logits(adapted), rescaled)
    attachment.pin(64)
    attachment.detach()
    assert (logits(adapted) - rescaled).abs().max() > 0.1


def test_tied_embeddings_stay_one_parameter(tmp_path: Path) -> None:
    adapted = trained(save_model(tmp_path / "model", tie_word_embeddings=True))
    model = adapted.get_base_model()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    adapted.train()
    adapted(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    # The gradient of tokens that are read and of those that are only predicted.
    assert model.get_input_embeddings().weight.grad.abs().sum(dim=1).gt(0).all()


@pytest.mark.parametrize("settings", [AdapterSettings(), PLAIN], ids=["embeddings and norms", "plain"])
def test_gradients_reach_all_that_is_trained_and_nothing_else(tmp_path: Path, settings: AdapterSettings) -> None:
    adapted = trained(save_model(tmp_path / "model"), settings).train()
    checkpoint_activations(adapted.get_base_model())
    adapted(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


def test_half_precision_models_train_in_float32_and_pass_on_their_own_dtype(tmp_path: Path) -> None:
    model = load_model(save_model(tmp_path / "model", dtype=torch.bfloat16))
    adapted = add_adapters(model, AdapterSettings(), "lora")
    assert {each.dtype for each in adapted.parameters() if each.requires_grad} == {torch.float32}
    assert {each.dtype for each in adapted.parameters() if not each.requires_grad} == {torch.bfloat16}
    kept = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda layer, args: kept.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert adapted(input_ids=torch.arange(20)[None]).logits.dtype == torch.bfloat16
    assert kept == [torch.bfloat16] * 2


def test_targets_can_be_chosen_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    model = load_model(save_model(tmp_path / "model"))
    assert targets(model, AdapterSettings(targets=("q_proj", "down_proj"))) == ("q_proj", "down_proj")
    every = targets(model, AdapterSettings(targets=("all-linear",)))
    assert every == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    with pytest.raises(SettingsError, match=r"'query' is no linear layer of model type 'llama'; it has down_proj, .*"):
        targets(model, AdapterSettings(targets=("query",)))


def test_embeddings_that_peft_cannot_tie_are_refused(tmp_path: Path) -> None:
    model = load_model(save_model(tmp_path / "model", "gpt_neox", tie_word_embeddings=True))
    assert "embed_in" in embeddings_and_norms(model)
    with pytest.raises(SettingsError, match="tied embeddings of model type 'gpt_neox'"):
        add_adapters(model, AdapterSettings(), "lora")


@pytest.mark.parametrize("tied", [False, True])
def test_plain_peft_loads_what_is_saved(tmp_path: Path, tied: bool) -> None:
    folder = save_model(tmp_path / "model", tie_word_embeddings=tied)
    adapted = trained(folder)
    saved = save_adapter(adapted, ModelSource(str(folder)), factors(), tmp_path / "adapter")
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder.resolve())
    assert config["inference_mode"] is True
    schedule = load_factors(saved / "longrope.json")
    assert isinstance(schedule, FactorSchedule)
    assert schedule.factors_for(256) == factors()
    model = load_model(folder)
    with adapters._quiet_peft():
        loaded = PeftModel.from_pretrained(model, saved)
    with attached(model, factors(), length=256):
        assert torch.equal(logits(loaded), logits(adapted))


def test_saving_takes_given_weights_and_names_the_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model")
    adapted = trained(folder)
    state = {name: torch.zeros_like(weight) for name, weight in adapted.state_dict().items()}
    monkeypatch.setattr(ModelSource, "folder", lambda self, weights=True: folder)
    source = ModelSource("some-org/model", "0123abcd")
    save_adapter(adapted, source, factors(), tmp_path / "adapter", state_dict=state)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("some-org/model", "0123abcd")
    assert adapted.peft_config["default"].base_model_name_or_path != "some-org/model"
    with adapters._quiet_peft():
        loaded = PeftModel.from_pretrained(load_model(folder), tmp_path / "adapter")
    assert not loaded.get_base_model().get_input_embeddings().weight.any()
    with pytest.raises(RunExistsError):
        save_adapter(adapted, source, factors(), tmp_path / "adapter")


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model")

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(trained(folder), ModelSource(str(folder)), factors(), tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("cuda", "installed", "zero", "said"),
    [
        (True, True, 3, "which ZeRO 3 cannot partition; use --zero 2"),
        (False, True, 0, "needs a CUDA GPU, and torch sees none; use --method lora"),
        (True, False, 0, r"needs bitsandbytes; pip install 'longrope\[quant\]'"),
    ],
)
def test_qlora_is_refused_where_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, installed: bool, zero: int, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(adapters, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(SettingsError, match=said) as caught:
        quantization("qlora", torch.bfloat16, zero)
    assert "\n" not in str(caught.value)


def test_only_qlora_quantises() -> None:
    assert quantization("lora", torch.bfloat16) is quantization("full", torch.bfloat16) is None


def test_adapters_without_peft_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=re.escape("pip install 'longrope[finetune]'")):
        add_adapters(load_model(save_model(tmp_path / "model")), AdapterSettings(), "lora")
