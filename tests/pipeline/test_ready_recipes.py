"""The recipes that come with longrope can be read, and hold the figures of what they follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longrope.data.mixture import ready_mixtures
from longrope.lengths import parse_lengths
from longrope.pipeline.recipe import read_recipe, ready_recipes
from longrope.pipeline.stages import EvaluateStage, FinetuneStage, ReadjustStage, Recipe, SearchStage, Stage
from longrope.search.paper import PaperSettings

K = 1024
FOLLOWED = sorted(name for name in ready_recipes() if not name.startswith("demo"))
"""Those that follow a paper or a project; that of the demo needs texts which the demo writes."""


def of_kind(recipe: Recipe, kind: type[Any]) -> list[Any]:
    return [stage for stage in recipe.stages if isinstance(stage, kind)]


def training(recipe: Recipe, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(stage.settings, name) for name in names) for stage in of_kind(recipe, FinetuneStage)]


@pytest.mark.parametrize("name", FOLLOWED)
def test_every_recipe_can_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(name)
    assert recipe.name == name
    text = ready_recipes()[name].read_text()
    assert text.startswith("# ")
    comment = text[: text.index("\nmodel:")]
    assert "Hardware:" in comment
    assert "https://" in comment


@pytest.mark.parametrize("name", FOLLOWED)
def test_recipes_read_from_the_hub_alone(name: str) -> None:
    recipe = read_recipe(name)
    places = [recipe.model.name]
    for stage in recipe.stages:
        data = getattr(stage.settings, "data", None) if not isinstance(stage, EvaluateStage) else stage.suite
        place = getattr(data, "source", None) or getattr(data, "haystack", None) or data
        if isinstance(place, str) and place not in ready_mixtures():
            places.append(place)
    assert all(place.count("/") == 1 and not place.startswith((".", "/")) for place in places)


@pytest.mark.parametrize("name", ["demo", "demo-full"])
def test_the_recipe_of_the_demo(tmp_path: Path, name: str) -> None:
    (tmp_path / "texts.jsonl").write_text("{}")
    data = ("data.training", "data.documents.source", "data.evaluation.source")
    recipe = read_recipe(name, [f"{place}={tmp_path / 'texts.jsonl'}" for place in data])
    assert recipe.model.name == "demo"


def test_names_in_the_list_of_recipes() -> None:
    listed = (Path(__file__).parents[2] / "configs" / "README.md").read_text()
    assert [name for name in FOLLOWED if f"[`{name}`]" not in listed] == []


def test_llama2_to_2048k_is_the_papers() -> None:
    recipe = read_recipe("llama2-7b-2048k")
    assert recipe.model.name == "meta-llama/Llama-2-7b-hf"
    kinds = [stage.kind for stage in recipe.stages]
    assert kinds == ["search", "finetune"] * 2 + ["search", "readjust"] + ["evaluate"] * 3 + ["export"]
    paper = PaperSettings(
        population=64, mutations=16, crossovers=16, mutation_probability=0.3, iterations=40, parents=32
    )
    halved = replace(paper, population=32, mutations=8, crossovers=8, iterations=15)
    searches = [
        (length, stage.settings.algorithm.sizes(length), stage.settings.data.sample_count(length))
        for stage in of_kind(recipe, SearchStage)
        if (length := stage.settings.target_length)
    ]
    assert searches == [(128 * K, paper, 5), (256 * K, paper, 5), (2048 * K, halved, 3)]
    assert all(
        stage.settings.algorithm.n_hat_choices == (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
        and stage.settings.algorithm.lambda_max is None
        and stage.settings.data.source == "emozilla/pg19"
        for stage in of_kind(recipe, SearchStage)
    )
    assert [stage.settings.data.split for stage in of_kind(recipe, SearchStage)] == [
        "validation",
        "validation",
        "train",
    ]
    assert training(recipe, "seq_length", "steps", "learning_rate", "schedule", "global_batch", "method") == [
        (128 * K, 400, 2e-5, "linear", 32, "full"),
        (256 * K, 600, 2e-5, "linear", 32, "full"),
    ]
    assert all(stage.factors is None for stage in of_kind(recipe, FinetuneStage))
    [readjust] = of_kind(recipe, ReadjustStage)
    assert readjust.settings.windows == (4 * K, 8 * K)
    sliding, long, passkey = of_kind(recipe, EvaluateStage)
    assert sliding.suite.split == long.suite.split == "test"
    assert (sliding.suite.protocol, sliding.suite.stride, sliding.suite.samples) == ("sliding", 256, 10)
    assert sliding.settings.lengths == parse_lengths("4k,8k,32k,64k,96k,128k,256k")
    assert long.settings.lengths == tuple(2**power * K for power in range(3, 12))
    assert (passkey.suite.trials, max(passkey.settings.lengths)) == (10, 2048 * K)


def test_mistral_to_2048k_is_the_papers() -> None:
    recipe = read_recipe("mistral-7b-2048k")
    assert (
        training(recipe, "seq_length", "steps", "learning_rate", "schedule", "global_batch")
        == [(16 * K, 400, 1e-6, "constant", 64)] * 2
    )
    # Segments are shorter than the window that the model has.
    assert not any(stage.keep_windows for stage in of_kind(recipe, FinetuneStage))
    lengths = [stage.settings.target_length for stage in of_kind(recipe, SearchStage)]
    assert lengths == [128 * K, 256 * K, 2048 * K]
    assert of_kind(recipe, ReadjustStage)[0].settings.windows == (4 * K, 8 * K)


@pytest.mark.parametrize("name", ["llama2-7b-2048k", "mistral-7b-2048k", "llama3-8b-128k", "phi3-mini-128k"])
def test_recipes_of_papers_search_as_they_do(name: str) -> None:
    recipe = read_recipe(name)
    stages = [*of_kind(recipe, SearchStage), *of_kind(recipe, ReadjustStage)]
    assert [stage.settings.algorithm.is_paper for stage in stages] == [True] * len(stages)
    assert stages


@pytest.mark.parametrize("name", ["llama3-8b-128k", "phi3-mini-128k"])
def test_recipes_after_longrope2(name: str) -> None:
    recipe = read_recipe(name)
    [search] = of_kind(recipe, SearchStage)
    assert search.settings.target_length == 128 * K
    assert (search.settings.data.objective, search.settings.data.samples) == ("needle", 10)
    sizes = search.settings.algorithm.sizes(128 * K)
    assert (sizes.population, sizes.iterations, sizes.mutation_probability) == (64, 40, 0.3)
    assert training(recipe, "learning_rate", "schedule", "global_batch") == [(2e-5, "cosine", 64)]


def test_qwen_to_1m_without_training_there() -> None:
    recipe = read_recipe("qwen2.5-7b-1m")
    assert [stage.settings.target_length for stage in of_kind(recipe, SearchStage)] == [256 * K, 1024 * K]
    assert training(recipe, "seq_length") == [(256 * K,)]


def test_longlora() -> None:
    recipe = read_recipe("llama2-7b-100k-longlora")
    [stage] = of_kind(recipe, FinetuneStage)
    settings, adapter = stage.settings, stage.settings.adapter
    assert (stage.factors.method, stage.factors.target_length) == ("pi", 25 * 4 * K)
    assert (settings.method, settings.attention, settings.group) == ("lora", "shifted-sparse", settings.seq_length // 4)
    assert (settings.learning_rate, settings.global_batch, settings.steps, settings.warmup) == (2e-5, 64, 1000, 20)
    assert (settings.betas, settings.weight_decay) == ((0.9, 0.95), 0)
    assert (adapter.rank, adapter.alpha, adapter.train_embeddings_and_norms) == (8, 16, True)


def test_easycontext() -> None:
    recipe = read_recipe("llama2-7b-512k-easycontext")
    stages = of_kind(recipe, FinetuneStage)
    assert {stage.factors.method for stage in stages} == {"abf"}
    assert [stage.factors.rope_theta for stage in stages] == [1e6, 5e6, 1e7, 2.5e7, 5e7, 1e8, 2.5e8]
    lengths = [32 * K, 64 * K, 256_000, 256_000, 256_000, 512_000, 512_000]
    assert [stage.settings.seq_length for stage in stages] == lengths
    assert [stage.settings.steps for stage in stages] == [1000, 1000, 500, 500, 150, 300, 90]
    assert [stage.settings.learning_rate for stage in stages] == [2e-5] * 6 + [1e-5]
    # About a million tokens a step.
    assert all(1e6 <= stage.settings.global_batch * stage.settings.seq_length < 1.05e6 for stage in stages)
    assert all(stage.settings.method == "full" for stage in stages)
    assert [stage.settings.sp for stage in stages] == [1, 1, 8, 8, 8, 8, 8]


def test_together() -> None:
    recipe = read_recipe("llama2-7b-32k-together")
    assert training(recipe, "data", "seq_length") == [
        ("together-32k-pretrain", 32 * K),
        ("together-32k-instruct", 32 * K),
    ]
    assert [stage.factors.method for stage in of_kind(recipe, FinetuneStage)] == ["pi", "pi"]


def test_stages_say_where_they_are() -> None:
    stages: tuple[Stage, ...] = read_recipe("llama2-7b-2048k").stages
    lines = ready_recipes()["llama2-7b-2048k"].read_text().splitlines()
    for stage in stages:
        line = int(stage.where.rpartition(" line ")[2])
        assert lines[line - 1].startswith(f"  - {stage.kind}:")
