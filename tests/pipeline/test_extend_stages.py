"""Fine-tuning stages whose factors come from elsewhere than a search, with adapters, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipes import carry_out, write_recipe

from longrope.finetune import worker
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.pipeline.extended import scaled
from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.stages import Scaling
from longrope.pipeline.state import open_state
from longrope.report.write import write_report
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import abf, linear, ntk, yarn
from longrope.rope.policy import FactorSchedule, load_factors

PLAIN = RopeFactors.identity(10000.0, 16, 64)
RECIPE = """\
model: MODEL
data: {documents: {source: DOCUMENTS}, training: DOCUMENTS}
execution: {workers: 1, device: cpu}
launch: {device: cpu}
stages:
  - finetune: {steps: 2, global_batch: 1, warmup: 0, learning_rate: 1.0e-3, STAGE}
  - evaluate: {suite: perplexity, samples: 2, lengths: [64, 128]}
  - export:
"""

Train = Callable[..., Path]


@pytest.fixture
def train(model_folder: Path, documents_file: Path, tmp_path: Path) -> Train:
    """Carries out a recipe of a fine-tuning, an evaluation and an export; returns the folder of the run."""

    def carry(stage: str, **options: Any) -> Path:
        text = RECIPE.replace("STAGE", stage)
        recipe = write_recipe(tmp_path / "recipe.yaml", model_folder, documents_file, text)
        carry_out(read_recipe(recipe), tmp_path / "run", **options)
        return tmp_path / "run"

    return carry


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> list[FactorSchedule]:
    """Those that models are trained under."""
    seen: list[FactorSchedule] = []
    prepare = worker.prepare_model

    def watched(source: Any, settings: Any, policy: FactorSchedule, *others: Any) -> Any:
        seen.append(policy)
        return prepare(source, settings, policy, *others)

    monkeypatch.setattr(worker, "prepare_model", watched)
    return seen


def schedule(path: Path) -> FactorSchedule:
    """The windows in a file."""
    found = load_factors(path)
    assert isinstance(found, FactorSchedule)
    return found


def test_methods_give_their_published_factors(model_folder: Path) -> None:
    source = ModelSource(str(model_folder))
    rope = read_rope(source.load_config(), source.folder())
    for name, method in {"pi": linear, "ntk": ntk, "yarn": yarn}.items():
        assert scaled(rope, Scaling(method=name), 256).lambdas == method(PLAIN, 256).lambdas
    raised = scaled(rope, Scaling(method="abf", rope_theta=50000.0), 256)
    assert raised.inv_freq() == pytest.approx(abf(PLAIN, 50000.0, 256).inv_freq())


@pytest.mark.parametrize("keeps", [True, False])
def test_short_segments_are_trained_under_the_long_factors_where_no_windows_are_kept(
    keeps: bool, train: Train, policies: list[FactorSchedule]
) -> None:
    run = train(f"seq_length: 32, factors: {{method: pi, target_length: 128}}, keep_windows: {str(keeps).lower()}")
    (policy,) = policies
    expected = PLAIN if keeps else linear(PLAIN, 128)
    assert policy.factors_for(32).lambdas == expected.lambdas
    windows = schedule(run / "export" / "longrope.json").windows
    assert [window.max_length for window in windows] == ([64, 128] if keeps else [128])
    assert windows[-1].factors.lambdas == linear(PLAIN, 128).lambdas


def test_adapters_under_factors_of_a_file_are_folded_into_the_model(
    train: Train, model_folder: Path, tmp_path: Path
) -> None:
    given = yarn(PLAIN, 128).replace(n_hat=4)
    given.save(tmp_path / "given.json")
    run = train("seq_length: 128, method: lora, factors: given.json, name: lora")
    merged, base = (load_file(each / "model.safetensors") for each in (run / "lora" / "merged", model_folder))
    changed = {name for name, weight in merged.items() if not torch.equal(weight, base[name])}
    assert {name for name in merged if "q_proj" in name or "norm" in name or "embed" in name} <= changed
    assert not any("mlp" in name for name in changed)
    exported = load_file(run / "export" / "model.safetensors")
    assert all(torch.equal(weight, exported[name]) for name, weight in merged.items())
    assert (schedule(run / "export" / "longrope.json").windows[-1].factors.n_hat) == 4
    assert (run / "export" / "modeling_longrope.py").exists()
    measured = json.loads((run / "evaluate-perplexity" / "results.json").read_text())
    assert measured["model"]["name"] == str(run / "lora" / "merged")
    for gone in (["merged/model"], ["merged/model", "adapter/adapter_model"]):
        for part in gone:
            (run / "lora" / f"{part}.safetensors").unlink()
        train("seq_length: 128, method: lora, factors: given.json, name: lora")
        again = load_file(run / "lora" / "merged" / "model.safetensors")
        assert all(torch.equal(weight, merged[name]) for name, weight in again.items())


def test_attention_is_trained_and_nothing_else_and_once(
    train: Train, model_folder: Path, policies: list[FactorSchedule]
) -> None:
    recipe = "seq_length: 128, method: attention, factors: {method: yarn}, name: attention"
    run = train(recipe)
    trained, base = (load_file(each / "model.safetensors") for each in (run / "attention" / "model", model_folder))
    changed = {name for name, weight in trained.items() if not torch.equal(weight, base[name])}
    assert changed == {name for name in trained if "self_attn" in name}
    assert len(changed) == 4 * len({name.split(".")[2] for name in changed})
    card = (run / "attention" / "model" / "README.md").read_text()
    assert "The projections of attention were fine-tuned under the factors; all other weights are the model's." in card
    train(recipe)
    assert len(policies) == 1


@pytest.mark.parametrize(
    ("export", "told"),
    [
        ("", "The weights are those of the model, trained further by the recipe in [recipe.yaml]"),
        ("{config_only: true}", "This folder holds no weights: lay its files over those of the model, trained further"),
    ],
)
def test_the_card_of_an_export_says_where_its_weights_are(
    export: str, told: str, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    stage = "seq_length: 128, factors: {method: yarn}"
    text = RECIPE.replace("STAGE", stage).replace("- export:", f"- export: {export}")
    recipe = write_recipe(tmp_path / "recipe.yaml", model_folder, documents_file, text)
    carry_out(read_recipe(recipe), tmp_path / "run")
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert told in card
    assert f"`{model_folder.name}` with a context window" in card


def test_a_raised_base_reaches_the_exported_model_and_the_report_tells_of_every_stage(train: Train) -> None:
    run = train("seq_length: 128, factors: {method: abf, rope_theta: 50000}", report=write_report)
    windows = schedule(run / "export" / "longrope.json").windows
    assert windows[-1].max_length == 128
    assert windows[-1].factors.inv_freq() == pytest.approx(abf(PLAIN, 50000.0, 128).inv_freq())
    page = (run / "report" / "report.html").read_text()
    stages = open_state(run).stages
    assert set(stages) == {"finetune-128", "evaluate-perplexity", "export"}
    for name, stage in stages.items():
        assert f'<th scope="row">{name}</th><td>{stage.told}</td><td>done</td>' in page
    for row in stages["evaluate-perplexity"].results["table"]:
        assert f">{row['perplexity']:.5g}<" in page
