"""Folders of fine-tuned models: weights from memory, everything else from the model they were loaded from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import Make, factors, logits_of, plain_transformers, save, two_windows
from safetensors.torch import load_file

from longrope.exceptions import RunExistsError, SettingsError
from longrope.export.extended import save_extended
from longrope.model.attach import attach, attached
from longrope.model.extended import load
from longrope.model.load import ModelSource
from longrope.rope.methods import DynamicNTK
from longrope.rope.policy import FixedFactors, load_factors


def trained(source: ModelSource, dtype: torch.dtype = torch.float32) -> Any:
    """The model, with every weight moved."""
    model = source.load_pretrained(dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gpt_neox"])
def test_weights_of_memory_and_the_rest_of_the_model(
    make_tiny_model: Make, tiny_tokenizer: Any, tmp_path: Path, model_type: str, tied: bool, gathered: bool
) -> None:
    source = save(make_tiny_model(model_type, tie_word_embeddings=tied), tmp_path / "model", tiny_tokenizer)
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    model = trained(source)
    attach(model, factors(model_type)).pin(256)
    expected = logits_of(model, 200)
    state = {name: weight.clone() for name, weight in model.state_dict().items()} if gathered else None
    if gathered:  # as ZeRO 3 leaves it
        for parameter in model.parameters():
            parameter.data = torch.empty(0)
    exported = save_extended(model, source, factors(model_type), tmp_path / "out", state_dict=state, told="Trained.")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*before, "README.md", "longrope.json"])
    assert torch.allclose(logits_of(plain_transformers(tmp_path / "out"), 200), expected, atol=1e-4)
    # The names of published models, and tied weights once.
    published, written = (set(load_file(tmp_path / name / "model.safetensors")) for name in ("model", "out"))
    assert written == published
    assert exported.schedule.factors_for(256) == factors(model_type)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 256
    assert "tokens. Trained.\n" in (tmp_path / "out" / "README.md").read_text()
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir() if path.suffix == ".safetensors"} == {
        (tmp_path / "out" / "longrope.json").stat().st_mode
    }


def test_schedules_and_n_hat_are_kept(make_tiny_model: Make, tmp_path: Path) -> None:
    source = save(make_tiny_model(), tmp_path / "model")
    model = trained(source)
    schedule = two_windows().with_window(factors(n_hat=8, attention_factor=1.15))
    with attached(model, schedule, length=256):
        expected = logits_of(model, 200)
    exported = save_extended(model, source, schedule, tmp_path / "out")
    assert any("n_hat = 8" in loss for loss in exported.losses)
    assert load_factors(tmp_path / "out" / "longrope.json") == schedule
    coded = plain_transformers(tmp_path / "out", trust_remote_code=True)
    assert torch.allclose(logits_of(coded, 200), expected, atol=1e-4)
    own = load(tmp_path / "out")
    own.longrope.pin(256)
    assert torch.allclose(logits_of(own, 200), expected, atol=1e-4)


def test_dtype_is_that_of_the_model_or_as_asked(make_tiny_model: Make, tmp_path: Path) -> None:
    source = save(make_tiny_model().to(torch.bfloat16), tmp_path / "model")
    model = trained(source)
    for name, asked, expected in (("same", None, torch.bfloat16), ("asked", torch.float32, torch.float32)):
        save_extended(model, source, FixedFactors(factors()), tmp_path / name, dtype=asked)
        written = ModelSource(str(tmp_path / name)).load_pretrained(dtype="auto")
        assert {each.dtype for each in written.parameters()} == {written.config.dtype} == {expected}
    assert model.dtype == torch.float32


def test_odd_generation_settings_do_not_stop_it(make_tiny_model: Make, tmp_path: Path) -> None:
    source = save(make_tiny_model(), tmp_path / "model")
    odd = {"do_sample": False, "temperature": 0.6, "bos_token_id": 1}  # which transformers 5.20 refuses to save
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(odd))
    model = trained(source)
    settings = model.generation_config
    save_extended(model, source, factors(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == odd
    assert model.generation_config is settings


def test_what_is_refused_and_interrupted_leaves_nothing(
    make_tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(make_tiny_model(), tmp_path / "model")
    model = trained(source)
    with pytest.raises(RunExistsError):
        save_extended(model, source, factors(), tmp_path / "model")
    with pytest.raises(SettingsError, match="DynamicNTK cannot be saved; give factors or a schedule"):
        save_extended(model, source, DynamicNTK(factors(), 2.0), tmp_path / "out")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model), "save_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        save_extended(model, source, factors(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
