"""The command that a report gives is understood by the command line, and means what the run did."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_search import coarse_to_fine

from longrope.cli.main import app
from longrope.cli.shared import given_command
from longrope.finetune.settings import AdapterSettings, FinetuneSettings, HeldOutSettings, MemorySettings
from longrope.report.reproduce import evaluation_command, finetune_command, search_command
from longrope.rope.policy import load_factors
from longrope.search.paper import PaperSettings
from longrope.search.search import algorithm_settings
from longrope.search.settings import AlgorithmSettings, SearchSettings


class Parsed(Exception):
    """What the library was about to be called with."""


Understood = Callable[[str, str], tuple[Any, ...]]


@pytest.fixture
def understood(monkeypatch: pytest.MonkeyPatch) -> Understood:
    """What the function of this name is called with by a command line, instead of running."""

    def parse(line: str, function: str) -> tuple[Any, ...]:
        def stop(*arguments: Any) -> None:
            raise Parsed(*arguments)

        monkeypatch.setattr(function, stop)
        name, *words = shlex.split(line.replace("\\\n", " "))
        assert name == "longrope"
        with pytest.raises(Parsed) as parsed:
            app(args=words)
        return parsed.value.args

    return parse


FINETUNE = FinetuneSettings(
    model="owner/model", factors="f.json", data="my data.jsonl", output="runs/it", seq_length=131072
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 7, "warmup": 2, "learning_rate": 3e-5, "betas": (0.8, 0.9), "zero": 3, "tf32": False, "seed": 5},
        {"revision": "abc", "trust_remote_code": True, "attention": "shifted-sparse", "group": 1024, "field": "body"},
        {"adapter": AdapterSettings(rank=4, targets=("q_proj",), train_embeddings_and_norms=False), "method": "lora"},
        {"memory": MemorySettings(checkpoint_activations=False, tile_mlp=512, tile_loss=2048)},
        {"held_out": HeldOutSettings(source="books", lengths=(4096, 131072), samples=3), "report_to": ("wandb",)},
    ],
)  # fmt: skip
def test_fine_tuning(understood: Understood, changes: dict[str, Any]) -> None:
    settings = replace(FINETUNE, **changes)
    if settings.held_out.source is not None:  # the command line has one field and split for both
        assert settings.held_out.field == settings.field
    elif settings.field != "text":
        settings = replace(settings, held_out=replace(settings.held_out, field=settings.field))
    parsed, *_ = understood(finetune_command(settings, Path("runs/it")), "longrope.finetune.run.finetune")
    assert parsed == replace(settings, output="NEW_FOLDER", factors="runs/it/factors.json")


def test_an_evaluation_is_what_was_typed(understood: Understood, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = "longrope --debug evaluate perplexity demo --lengths 256,2k --data 'my books' --resume -o runs/it"
    monkeypatch.setattr("sys.argv", shlex.split(typed))
    line = evaluation_command(json.loads(json.dumps(given_command())))
    assert line is not None
    settings, *_ = understood(line, "longrope.evaluation.suites.evaluate")
    assert settings.lengths == (256, 2048)
    assert (settings.output, settings.resume) == ("NEW_FOLDER", False)
    assert "'my books'" in line
    assert evaluation_command(None) is None


def test_a_search(understood: Understood, search_run: Path) -> None:
    provenance = load_factors(search_run / "factors.json").provenance
    parsed, *_ = understood(search_command(provenance), "longrope.search.search.search")
    assert isinstance(parsed, SearchSettings)
    recorded, sizes = provenance["settings"], parsed.algorithm.sizes(parsed.target_length)
    assert parsed.model == provenance["model"]["name"]
    assert (parsed.target_length, parsed.seed) == (512, provenance["seed"])
    for name in ("population", "mutations", "crossovers", "iterations", "parents", "max_evaluations"):
        assert getattr(sizes, name) == recorded[name]
    assert list(parsed.algorithm.n_hat_choices) == recorded["n_hat_choices"]
    assert parsed.algorithm.lambda_max == recorded["lambda_max"]
    assert parsed.algorithm.attention_factor == "auto"
    assert (parsed.data.source, parsed.data.samples, parsed.data.held_out) == (provenance["data"]["source"], 2, 3)
    assert parsed.execution.dtype == recorded["dtype"] == "float32"
    assert (parsed.execution.batch, recorded["batch"]) == (None, 1)


@pytest.mark.parametrize(
    ("device", "batch", "given"), [("cuda", 4, 4), ("cuda", 1, 1), ("cpu", 4, 4), ("cpu", 1, None)]
)
def test_a_search_has_the_batches_that_it_had(
    device: str, batch: int, given: int | None, understood: Understood, search_run: Path
) -> None:
    provenance = dict(load_factors(search_run / "factors.json").provenance)
    provenance["settings"] = {**provenance["settings"], "device": device, "batch": batch}
    parsed, *_ = understood(search_command(provenance), "longrope.search.search.search")
    assert parsed.execution.batch == given


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        ({}, ["--algorithm cma", "--population 4", "--max-evaluations 15"]),
        ({"algorithm": "genetic", "racing": False}, ["--algorithm genetic", "--no-racing"]),
        ({"algorithm": "genetic", "population": None, "max_evaluations": None}, ["--algorithm genetic"]),
        ({"patience": 3, "max_gpu_hours": 2.5}, ["--patience 3", "--max-gpu-hours 2.5"]),
        ({"attention_factor": "none", "racing": True}, ["--attention-factor none"]),
    ],
)
def test_a_search_has_the_algorithm_that_it_had(
    chosen: dict[str, Any], options: list[str], understood: Understood, search_run: Path
) -> None:
    """From what a search with these settings records of them."""
    algorithm = AlgorithmSettings(**coarse_to_fine(**{"name": chosen.pop("algorithm", "cma"), **chosen}))
    provenance = dict(load_factors(search_run / "factors.json").provenance)
    kept = {name: value for name, value in provenance["settings"].items() if name not in asdict(PaperSettings())}
    recorded = algorithm_settings(algorithm, algorithm.sizes(512), None)
    provenance["settings"] = {**kept, **recorded, "attention_factor_rule": algorithm.attention_factor}
    line = search_command(provenance)
    assert [option for option in options if option not in line] == []
    parsed, *_ = understood(line, "longrope.search.search.search")
    for name in ("algorithm", "races", "patience", "max_gpu_hours", "attention_factor", "watched_every"):
        assert getattr(parsed.algorithm, name) == getattr(algorithm, name), name
    assert parsed.algorithm.sizes(512) == algorithm.sizes(512)


def test_sizes_that_are_no_options_are_left_out(understood: Understood, search_run: Path) -> None:
    """Of a run from when the levels were of other sizes."""
    algorithm = AlgorithmSettings(algorithm="cma", population=5)
    provenance = dict(load_factors(search_run / "factors.json").provenance)
    recorded = algorithm_settings(algorithm, algorithm.sizes(512), None) | {"coarse": 64, "knots": 300}
    kept = {name: value for name, value in provenance["settings"].items() if name not in asdict(PaperSettings())}
    provenance["settings"] = {**kept, **recorded}
    parsed, *_ = understood(search_command(provenance), "longrope.search.search.search")
    assert parsed.algorithm.sizes(512) == algorithm.sizes(512)


def test_the_paper_with_racing_is_repeated_with_racing(understood: Understood, search_run: Path) -> None:
    provenance = dict(load_factors(search_run / "factors.json").provenance)
    assert "racing" not in search_command(provenance)
    provenance["settings"] = {**provenance["settings"], "racing": True}
    parsed, *_ = understood(search_command(provenance), "longrope.search.search.search")
    assert (parsed.algorithm.algorithm, parsed.algorithm.races) == ("paper", True)


@pytest.mark.parametrize(("searched", "factor"), [(True, "search"), (False, "1.25")])
def test_a_readjustment_is_told_of_its_attention_factor(
    searched: bool, factor: str, understood: Understood, search_run: Path
) -> None:
    provenance = dict(load_factors(search_run / "factors.json").provenance)
    algorithm = AlgorithmSettings(algorithm="cma")
    given = {**provenance["settings"], **algorithm_settings(algorithm, algorithm.sizes(48), None), "window": 48}
    given |= {"attention_factor": 1.25} | ({"attention_span": 1.2} if searched else {})
    provenance["settings"] = {name: value for name, value in given.items() if name != "attention_factor_rule"}
    parsed, *_ = understood(search_command(provenance), "longrope.search.readjust.readjust")
    assert parsed.windows == (48,)
    assert (parsed.algorithm.algorithm, str(parsed.algorithm.attention_factor)) == ("cma", factor)
