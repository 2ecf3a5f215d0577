"""Weights that were not trained come out as they were, whatever dtype training held them in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import factors
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from longrope.export.extended import save_extended
from longrope.export.kept_weights import keep_untrained
from longrope.model.load import ModelSource

TRAINED = ("layers.0.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.weight")


@pytest.fixture
def half(make_tiny_model, tmp_path: Path) -> Path:
    """A model whose files are float16."""
    make_tiny_model().half().save_pretrained(tmp_path / "half")
    return tmp_path / "half"


@pytest.mark.parametrize("trained", [TRAINED, None])
def test_training_in_bfloat16_rounds_nothing_that_it_does_not_train(half: Path, tmp_path: Path, trained) -> None:
    model = AutoModelForCausalLM.from_pretrained(half, dtype=torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.add_(0.5)
    save_extended(model, ModelSource(str(half)), factors(), tmp_path / "out", trained=trained)
    before, after = load_file(half / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in after.values()} == {torch.float16}
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    asked = {f"model.{name}" for name in TRAINED}
    assert changed == asked if trained else changed > asked
    for name in asked:
        torch.testing.assert_close(after[name], before[name] + 0.5, rtol=0, atol=0.01)


def test_nothing_trained_is_lost_where_names_or_files_are_others(tmp_path: Path) -> None:
    for name, value in (("before", 0.0), ("after", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"a.weight": torch.full((2,), value)}, tmp_path / name / "model.safetensors")
    written = (tmp_path / "after" / "model.safetensors").read_bytes()
    keep_untrained(tmp_path / "after", tmp_path / "before", ["elsewhere.weight"])
    (tmp_path / "empty").mkdir()
    keep_untrained(tmp_path / "after", tmp_path / "empty", ["a.weight"])
    assert (tmp_path / "after" / "model.safetensors").read_bytes() == written
