"""The model card of an exported folder: metadata the hub understands, and only what is known of the factors."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from export_cases import factors, plain_transformers, save, two_windows
from huggingface_hub import ModelCard
from tiny_search import search_in_process, settings

from longrope.export.engines.check import check
from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window


@pytest.fixture(scope="module")
def searched(model_folder, documents_file, tmp_path_factory):
    return search_in_process(settings(model_folder, documents_file, tmp_path_factory.mktemp("runs") / "run"))[0]


@pytest.fixture
def source(make_tiny_model, tmp_path):
    return save(make_tiny_model(), tmp_path / "model")


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def section(text: str, title: str) -> str:
    """What stands under a heading."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, text
    return match[1]


def test_search_is_told_in_full(searched, model_folder, tmp_path):
    exported = export_folder(ModelSource(str(model_folder)), searched.factors, tmp_path / "out", without_n_hat=True)
    text = card_of(exported.folder).text
    made = section(text, "Window 128")
    assert "- method: longrope search, algorithm paper" in made
    assert f"- candidates evaluated: {searched.solution.evaluations}" in made
    assert "- seed: 0" in made
    assert "- data: documents.jsonl (2 search samples, 3 held-out samples)" in made
    assert "population 8" in made
    for result in searched.solution.results:
        numbers = [result.attention_factor, result.search, result.held_out(128)]
        cells = " | ".join([result.name, *(f"{number:.4f}" for number in numbers)])
        assert f"| {cells} |" in made
    assert "Made by: plain RoPE." in section(text, "Window 64")
    assert str(model_folder) not in text


def made_by(kind, **changes):
    """What factors record of a run from coarse to fine; ``changes`` are of its settings."""
    length = {"search": "target_length", "readjust": "window"}[kind]
    return {
        "method": f"longrope {kind}, algorithm genetic",
        "model": {"name": "some-org/model"},
        "data": {"source": "books", "objective": "perplexity"},
        "seed": 3,
        "settings": {length: 256, "algorithm": "genetic", "attention_factor": 1.15, "racing": True, **changes},
    }


def command_of(source, folder, provenance):
    """What the card gives to search again, in words."""
    schedule = FactorSchedule((Window(256, factors(attention_factor=1.15, provenance=provenance)),))
    text = card_of(export_folder(source, schedule, folder).folder).text
    return shlex.split(text.partition("To search again:")[2].strip().partition("\n")[0])


def test_there_is_no_command_for_an_algorithm_of_another_version(source, tmp_path):
    provenance = made_by("search", algorithm="annealing")
    schedule = FactorSchedule((Window(256, factors(attention_factor=1.15, provenance=provenance)),))
    text = card_of(export_folder(source, schedule, tmp_path / "out").folder).text
    assert "longrope search" in text
    assert "To search again" not in text


def value_of(words, option):
    return words[words.index(option) + 1] if option in words else None


@pytest.mark.parametrize(("objective", "told"), [("needle", "needle"), ("perplexity", None)])
def test_the_objective_is_told_where_it_is_not_the_usual_one(source, tmp_path, objective, told):
    provenance = made_by("search")
    provenance["data"]["objective"] = objective
    assert value_of(command_of(source, tmp_path / "out", provenance), "--objective") == told


def test_that_only_the_last_tokens_counted_is_told(source, tmp_path):
    provenance = made_by("search")
    assert value_of(command_of(source, tmp_path / "all", provenance), "--last") is None
    provenance["data"]["last"] = 255
    assert value_of(command_of(source, tmp_path / "out", provenance), "--last") == "255"


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("readjust", {}, "1.15"),
        ("readjust", {"attention_span": 1.2}, "search"),
        ("search", {"attention_span": 1.2, "attention_factor_rule": "search"}, "search"),
        ("search", {"attention_factor_rule": "auto"}, "auto"),
    ],
)
def test_a_searched_attention_factor_is_searched_again(source, tmp_path, kind, changes, told):
    words = command_of(source, tmp_path / "out", made_by(kind, **changes))
    assert words[:3] == ["longrope", kind, "some-org/model"]
    assert value_of(words, "--attention-factor") == told


def test_windows_and_losses(source, tmp_path):
    schedule = FactorSchedule(
        (
            Window(32, factors(target=32, stretch=0.1)),
            Window(64, factors(target=64, stretch=0.25, attention_factor=1.15)),
            Window(256, factors(attention_factor=1.15, provenance={"method": "by | hand"})),
        )
    )
    exported = export_folder(source, schedule, tmp_path / "out", name="me/mine")
    text = card_of(exported.folder).text
    assert text.strip().startswith("<!-- This card was written by longrope ")
    table = section(text, "Windows")
    assert "| 32 | 0 | 1 | 1 to 1.31 | not recorded |" in table
    assert "| 256 | 0 | 1.15 | 1 to 4.1 | by \\| hand |" in table
    transformers = section(text, "transformers")
    assert 'longrope.load("me/mine")' in transformers
    assert "trust_remote_code" not in transformers
    assert len(exported.losses) == 3
    for loss in exported.losses:
        assert f"- {loss}\n" in transformers


@pytest.mark.parametrize("single_list", [False, True])
def test_engines_are_told_as_the_check_tells_them(source, tmp_path, single_list):
    folder = export_folder(source, two_windows(), tmp_path / "out", single_list=single_list).folder
    text = card_of(folder).text
    names = {"vllm": "vLLM", "sglang": "SGLang", "llama.cpp": "llama.cpp", "exllama": "exllamav3", "mlx": "mlx-lm"}
    for engine, title in names.items():
        said, report = section(text, title), check(folder, engine)
        lines = [*report.service.serve_with, *report.service.notes, *report.service.mismatches]
        for line in lines:
            assert line.replace(str(folder), "out") in said
        assert ("- differs: " in said or "of the folder itself" in said) == (not report.same)
    assert ("- differs: 1 to 64 tokens get the long list\n" in section(text, "vLLM")) != single_list
    assert str(tmp_path) not in text


def test_engine_that_serves_the_schedule_is_told_so(source, tmp_path):
    schedule = FactorSchedule((Window(256, factors(attention_factor=1.15)),))
    folder = export_folder(source, schedule, tmp_path / "out").folder
    assert "- all sequences get what was measured\n" in section(card_of(folder).text, "vLLM")
    assert "1 to 256 tokens get attention factor" in section(card_of(folder).text, "exllamav3")


# Metadata and the model's own card


OWN = """---
license: other
license_name: mine
license_link: LICENSE
language: [en, "no"]
base_model: someone/else
tags: [private]
---

# The model itself
"""


def test_metadata(source, tmp_path):
    (source.folder() / "README.md").write_text(OWN)
    folder = export_folder(source, two_windows(), tmp_path / "out").folder
    assert card_of(folder).data.to_dict() == {
        "base_model": "someone/else",
        "library_name": "transformers",
        "license": "other",
        "license_name": "mine",
        "license_link": "LICENSE",
        "language": ["en", "no"],
        "pipeline_tag": "text-generation",
        "tags": ["longrope", "rope", "long-context"],
    }
    assert (folder / "README.original.md").read_text() == OWN
    assert "README.original.md" in card_of(folder).text


@pytest.mark.parametrize("own", [None, "no metadata", "---\n[1, 2\n---\n", "---\n- a\n---\n", b"---\n\xff: 1\n---\n"])
def test_own_card_that_says_nothing(source, tmp_path, own):
    if own is not None:
        (source.folder() / "README.md").write_bytes(own if isinstance(own, bytes) else own.encode())
    folder = export_folder(source, two_windows(), tmp_path / "out").folder
    assert {"license", "base_model"}.isdisjoint(card_of(folder).data.to_dict())
    assert (folder / "README.original.md").exists() == (own is not None)
    assert "`model` with a context window of 256 tokens" in card_of(folder).text


def test_license_of_the_config(make_tiny_model, tmp_path):
    model = make_tiny_model()
    model.config.license = "mit"
    folder = export_folder(save(model, tmp_path / "model"), two_windows(), tmp_path / "out").folder
    assert card_of(folder).data.license == "mit"


def test_second_export_keeps_license_and_original_card_and_writes_a_new_one(source, tmp_path):
    (source.folder() / "README.md").write_text(OWN)
    first = export_folder(source, two_windows(), tmp_path / "first").folder
    far = factors(target=512, stretch=2.0, attention_factor=1.15)
    second = export_folder(ModelSource(str(first)), far, tmp_path / "second").folder
    assert (second / "README.original.md").read_text() == OWN
    assert card_of(second).data.license_name == "mine"
    assert card_of(second).data.base_model == "someone/else"
    assert "context window of 512 tokens" in card_of(second).text


def test_download_names_its_repository(source, tmp_path):
    snapshot = tmp_path / "models--some-org--some--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    source.folder().rename(snapshot)
    folder = export_folder(ModelSource(str(snapshot)), two_windows(), tmp_path / "out").folder
    assert card_of(folder).data.base_model == "some-org/some--model"


def test_model_of_the_hub_is_named_with_its_revision(source, tmp_path, monkeypatch):
    folder = source.folder()
    monkeypatch.setattr(
        ModelSource, "folder", lambda self, weights=True: folder if self.name == "some-org/model" else Path(self.name)
    )
    written = export_folder(ModelSource("some-org/model", "v2"), two_windows(), tmp_path / "out").folder
    assert card_of(written).data.base_model == "some-org/model"
    text = card_of(written).text
    assert "[some-org/model](https://huggingface.co/some-org/model) with a context window" in text
    assert "longrope apply some-org/model --model-revision v2 --factors" in text


def test_folder_without_weights_says_so(source, tmp_path):
    folder = export_folder(source, two_windows(), tmp_path / "out", config_only=True).folder
    assert "This folder holds no weights" in card_of(folder).text
    assert "--config-only --output FOLDER" in card_of(folder).text


# Factors from elsewhere


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"seed": 7},
        {"method": ["?"], "model": "x", "data": 3, "settings": [], "results": {"methods": "none"}, "versions": None},
        {
            "method": "longrope search",
            "model": {"name": None},
            "data": {"source": 1},
            "settings": {"target_length": 9.5},
        },
        {"results": {"methods": [1, {"method": None, "held_out_perplexity": {"many": "x", "64": None}}]}},
        {"method": "imported", "source": "a\n# b.csv", "sha256": "0f", "form": "CSV", "notes": ["short", "rising"]},
    ],
)
def test_provenance_of_any_form_is_told_as_far_as_it_goes(source, tmp_path, provenance):
    provenance = json.loads(json.dumps(provenance))
    schedule = FactorSchedule((Window(256, factors(attention_factor=1.15, provenance=provenance)),))
    text = card_of(export_folder(source, schedule, tmp_path / "out").folder).text
    made = section(text, "Window 256")
    assert "To search again" not in made
    if not provenance:
        assert "Made by: not recorded." in made
    if "form" in provenance:
        assert "- source: a # b.csv\n" in made
        assert "- notes: short; rising" in made


def test_windows_that_were_imported_together_are_told_once(source, tmp_path):
    made = {"method": "imported", "source": "table.csv"}
    schedule = FactorSchedule(
        (
            Window(64, factors(target=64, stretch=0.25, provenance=made)),
            Window(256, factors(provenance=made)),
        )
    )
    text = card_of(export_folder(source, schedule, tmp_path / "out").folder).text
    assert text.count("- source: table.csv") == 1
    assert "### Windows 64, 256\n" in text


# With the modeling file


def test_code_is_told_and_goes_again(source, tmp_path):
    near = factors(target=32, stretch=0.2, n_hat=4)
    schedule = FactorSchedule(
        (Window(32, near), Window(64, RopeFactors.identity(1e4, 16, 64)), Window(256, factors(n_hat=8)))
    )
    exported = export_folder(source, schedule, tmp_path / "out", code=True)
    assert exported.schedule == schedule
    assert "sequences of 65 to 256 tokens get the same lambdas without n_hat instead of n_hat = 8" in exported.losses
    assert "trust_remote_code=True" in section(card_of(exported.folder).text, "transformers")
    assert "--code --output FOLDER" in card_of(exported.folder).text
    config = json.loads((exported.folder / "config.json").read_text())
    assert [window["n_hat"] for window in config["longrope"]["windows"]] == [4, 0, 8]
    assert config["rope_parameters"]["long_factor"] == list(factors().lambdas)
    plain_transformers(exported.folder)  # the two lists need no trust

    again = export_folder(ModelSource(str(exported.folder)), schedule, tmp_path / "again", code=True).folder
    assert json.loads((again / "config.json").read_text()) == config
    flat = FactorSchedule(tuple(Window(w.max_length, w.factors.replace(n_hat=0)) for w in schedule.windows))
    without = export_folder(ModelSource(str(again)), flat, tmp_path / "without").folder
    assert not (without / "modeling_longrope.py").exists()
    assert not {name for name, value in json.loads((without / "config.json").read_text()).items() if value} & {
        "longrope",
        "auto_map",
    }


def test_metadata_is_safe_yaml(source, tmp_path):
    (source.folder() / "README.md").write_text("---\nlicense: '!!python/name:os.system'\n---\n")
    text = (export_folder(source, two_windows(), tmp_path / "out").folder / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "!!python/name:os.system"
