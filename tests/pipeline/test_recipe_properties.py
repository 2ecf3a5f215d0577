"""A good recipe means the same in any order of its keys, and whether a setting stands in the file or in an override."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.stages import Recipe

GOOD = """\
model: {name: demo}
seed: 3
data:
  documents: {source: documents.jsonl, held_out: 2, field: body}
  training: documents.jsonl
execution: {workers: 2, dtype: float32}
launch: {gpus: 1, device: cpu}
stages:
- search:
    target_length: 1k
    algorithm: {algorithm: paper, population: 8, parents: 4, n_hat: [0, 4], attention_factor: su}
    data: {samples: 3, concatenate: true}
- finetune: {seq_length: 1k, steps: 30, memory: {tile_mlp: 256}, adapter: {rank: 4}, launch: {gpus: 2}}
- search: {name: last, target_length: 8k, seed: 4}
- readjust: {windows: [256, 512], execution: {workers: 1}}
- evaluate: {suite: perplexity, lengths: [256, 8k], stride: 64, protocol: sliding, methods: [longrope, yarn]}
- evaluate: {suite: passkey, lengths: 256, model: original}
- export: {single_list: true}
"""
# Places in that recipe, and values that are good there.
SETTINGS: dict[str, Any] = {
    "seed": st.integers(0, 1000),
    "model.revision": st.sampled_from(["main", "v1.0"]),
    "execution.workers": st.integers(1, 8),
    "launch.nodes": st.integers(1, 4),
    "data.documents.samples": st.integers(1, 9),
    "search-1k.algorithm.iterations": st.integers(0, 50),
    "search-1k.algorithm.n_hat": st.lists(st.integers(0, 256), min_size=1, max_size=4),
    "search-1k.data.max_documents": st.integers(1, 99),
    "finetune-1k.learning_rate": st.floats(1e-7, 1e-3),
    "finetune-1k.memory.offload_activations": st.booleans(),
    "finetune-1k.keep_windows": st.booleans(),
    "last.target_length": st.sampled_from(["8k", "16k", 9000]),
    "last.execution.dtype": st.sampled_from(["bf16", "auto"]),
    "readjust.windows": st.lists(st.integers(2, 1000), min_size=1, max_size=3),
    "readjust.algorithm.lambda_max": st.floats(1.0, 9.0),
    "evaluate-perplexity.lengths": st.just([256, "2k"]),
    "evaluate-passkey.trials": st.integers(1, 20),
    "export.config_format": st.sampled_from(["v4", "v5"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "documents.jsonl").write_text('{"body": "a text"}\n')
    return folder


def read(folder: Path, content: Any, *overrides: str) -> Recipe:
    """What a recipe says, wherever it says it."""
    path = folder / "good.yaml"
    path.write_text(json.dumps(content))  # which is YAML too
    recipe = read_recipe(path, overrides)
    return replace(recipe, content={}, stages=tuple(replace(stage, where="") for stage in recipe.stages))


def shuffled(draw: st.DataObject, value: Any) -> Any:
    if isinstance(value, list):
        return [shuffled(draw, each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: shuffled(draw, value[key]) for key in draw.draw(st.permutations(list(value)))}


def put(content: Any, path: str, value: Any) -> None:
    """Write a setting where an override of that name would put it."""
    stages = {}
    for item in content["stages"]:
        ((kind, options),) = item.items()
        told = {"search": "target_length", "finetune": "seq_length", "evaluate": "suite"}.get(kind)
        stages[options.get("name") or (f"{kind}-{options[told]}" if told else kind)] = options
    *outer, last = path.split(".")
    here = stages[outer.pop(0)] if outer and outer[0] in stages else content
    for key in outer:
        here = here.setdefault(key, {})
    here[last] = value


@settings(max_examples=30)
@given(st.data())
def test_the_order_of_keys_does_not_matter(folder: Path, data: st.DataObject) -> None:
    content = yaml.safe_load(GOOD)
    assert read(folder, shuffled(data, content)) == read(folder, content)


@settings(max_examples=30)
@given(st.data())
def test_an_override_is_as_good_as_the_file(folder: Path, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(SETTINGS)), unique=True, min_size=1, max_size=4))
    values = {path: data.draw(SETTINGS[path], label=path) for path in chosen}
    content = yaml.safe_load(GOOD)
    for path, value in values.items():
        put(content, path, value)
    overrides = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    changed = read(folder, yaml.safe_load(GOOD), *overrides)
    assert changed == read(folder, content)


def test_overrides_change_something(folder: Path) -> None:
    content = yaml.safe_load(GOOD)
    plain = read(folder, content)
    for path, value in {"seed": 9, "last.seed": 9, "data.documents.held_out": 9, "finetune-1k.steps": 99}.items():
        assert read(folder, content, f"{path}={value}") != plain


def test_names_of_stages_may_have_points(folder: Path) -> None:
    content = yaml.safe_load(GOOD)
    content["stages"][0]["search"]["name"], content["stages"][2]["search"]["name"] = "far", "far.data"
    stages = read(folder, content, "far.data.seed=9", "far.seed=8").stages
    assert (stages[0].settings.seed, stages[2].settings.seed) == (8, 9)


def test_what_overrides_change_is_in_the_content(folder: Path) -> None:
    (folder / "given.yaml").write_text(GOOD)
    recipe = read_recipe(folder / "given.yaml", ["last.seed=9", "model.name=demo"])
    assert recipe.content["stages"][2]["search"] == {"name": "last", "target_length": "8k", "seed": 9}


def test_the_content_names_the_files_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "recipes", tmp_path / "here"):
        place.mkdir()
        (place / "documents.jsonl").write_text('{"body": "a text"}\n')
    (tmp_path / "recipes" / "given.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path / "here")
    changes = ["data.training=documents.jsonl", "last.data.source=documents.jsonl"]
    recipe = read_recipe(tmp_path / "recipes" / "given.yaml", changes)
    _, training, last = recipe.stages[:3]
    typed = str(tmp_path / "here" / "documents.jsonl")
    assert (training.settings.data, last.settings.data.source) == (typed, typed)
    assert recipe.content["data"]["training"] == typed
    assert recipe.content["stages"][2]["search"]["data"] == {"source": typed}
    assert recipe.content["data"]["documents"]["source"] == str(tmp_path / "recipes" / "documents.jsonl")
