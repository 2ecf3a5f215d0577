"""The table: every row finds the rotary module and the head of its architecture, and the rest is refused by name."""

import pytest
import torch
from model_cases import random_ids
from transformers import Cohere2Config, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, LlavaConfig

from longrope.exceptions import UnsupportedModelError
from longrope.model.architectures import ARCHITECTURES, architecture_for


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_row_finds_the_parts(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    row = architecture_for(model.config)
    rotary = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    assert row.model_type == model_type
    assert [row.rotary_of(model)] == rotary  # one, shared by all layers
    assert row.head_of(model) is model.get_output_embeddings()
    ids = random_ids(10)
    with torch.inference_mode():
        hidden = row.decoder_of(model)(ids, use_cache=False).last_hidden_state
        assert torch.equal(row.head_of(model)(hidden), model(ids, use_cache=False).logits)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_row_sets_the_rotary_module(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    row, module = architecture_for(model.config), torch.nn.Identity()
    row.set_rotary(model, module)
    assert row.rotary_of(model) is module


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(), "'gpt2' has no rope_parameters"),
        (Cohere2Config(), "'cohere2' is not supported yet"),
        (Gemma3TextConfig(), "'gemma3_text' is not supported yet"),
        (GPTNeoXConfig(), "'gpt_neox' is not supported yet"),
        (LlavaConfig(), "'llava' is not supported yet"),
        (object(), "None has no rope_parameters"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_other_architectures_are_refused(config, message):
    with pytest.raises(UnsupportedModelError, match=message) as refusal:
        architecture_for(config)
    assert "supported: llama, mistral" in str(refusal.value)
    assert "\n" not in str(refusal.value)
