"""`longrope apply`: options, what is printed, and pushing to a hub that is not there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_search import InProcessPool
from transformers import AutoModelForCausalLM

from longrope.demo import model_folder as demo_folder
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import ntk, yarn
from longrope.rope.policy import FactorSchedule, Window, load_factors
from longrope.search.search import SearchReport

Run = Callable[..., Any]
PLAIN = RopeFactors.identity(10000.0, 16, 64)
LONG = yarn(PLAIN, 1024)
NEAR = ntk(PLAIN, 128).replace(target_length=32, attention_factor=LONG.attention_factor)


@pytest.fixture
def factors(tmp_path: Path) -> Path:
    """A schedule with windows of 32, 64 and 1024 tokens."""
    windows = (Window(32, NEAR), Window(64, PLAIN), Window(1024, LONG))
    FactorSchedule(windows).save(tmp_path / "schedule.json")
    return tmp_path / "schedule.json"


@pytest.fixture
def apply(longrope: Run, model_folder: Path, factors: Path, tmp_path: Path) -> Run:
    """Runs `longrope apply` on the tiny model with the schedule, into `out`."""
    return lambda *more: longrope("apply", model_folder, "--factors", factors, "--output", tmp_path / "out", *more)


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def test_defaults(apply: Run, tmp_path: Path) -> None:
    ended = apply()
    assert (ended.code, ended.err) == (0, "")
    first, *notes = ended.out.splitlines()
    assert first == f"{tmp_path / 'out'}: windows 32, 64, 1k"
    assert all(note.startswith("note: ") for note in notes)
    assert "note: sequences of 1 to 32 tokens get the factors of window 64 instead of those of 32" in ended.out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.rope_parameters["rope_type"] == "longrope"


def test_options_reach_the_folder(apply: Run, model_folder: Path, tmp_path: Path) -> None:
    ended = apply("--short-window", "32", "--config-format", "v4", "--copy")
    assert ended.code == 0, ended.err
    config = config_of(tmp_path / "out")
    assert config["rope_scaling"]["short_factor"] == list(NEAR.lambdas)
    assert "rope_parameters" not in config
    assert not (tmp_path / "out" / "model.safetensors").samefile(model_folder / "model.safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--factors longrope.json --short-window 32 --config-format v4 --output FOLDER" in card


def test_single_list_without_weights(apply: Run, tmp_path: Path) -> None:
    assert apply("--single-list", "--config-only").code == 0
    parameters = config_of(tmp_path / "out")["rope_parameters"]
    assert parameters["short_factor"] == parameters["long_factor"] == list(LONG.lambdas)
    schedule = load_factors(tmp_path / "out" / "longrope.json")
    assert isinstance(schedule, FactorSchedule)
    assert [window.max_length for window in schedule.windows] == [LONG.target_length]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_code_has_n_hat_and_says_for_whom_the_losses_are(
    longrope: Run, model_folder: Path, factors: Path, tmp_path: Path
) -> None:
    schedule = load_factors(factors)
    assert isinstance(schedule, FactorSchedule)
    schedule.with_window(LONG.replace(n_hat=8)).save(factors)
    arguments = ("apply", model_folder, "--factors", factors, "--output", tmp_path / "out")
    refused = longrope(*arguments)
    assert refused.code == 2
    assert "n_hat = 8" in refused.err
    ended = longrope(*arguments, "--code")
    assert ended.code == 0, ended.err
    notes = ended.out.splitlines()[1:]
    assert notes
    assert all(note.startswith("note: without trust_remote_code, ") for note in notes)
    assert any("the same lambdas without n_hat instead of n_hat = 8" in note for note in notes)
    assert config_of(tmp_path / "out")["longrope"]["windows"][-1]["n_hat"] == 8


def test_embedded_model(longrope: Run, tmp_path: Path) -> None:
    yarn(RopeFactors.identity(10000.0, 64, 256), 1024).save(tmp_path / "factors.json")
    ended = longrope("apply", "demo", "--factors", tmp_path / "factors.json", "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (demo_folder() / "model.safetensors").read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "longrope apply demo --factors longrope.json --output FOLDER" in card
    assert str(demo_folder()) not in card


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--short-window", "48"), "short window 48 is not a window of the schedule; it has 32, 64, 1k"),
        (("--short-window", "x"), "length 'x' is not a positive whole number of tokens"),
        (("--short-window", "32", "--single-list"), "--short-window and --single-list contradict each other"),
        (("--config-format", "v6"), "config format 'v6' is not known; use v5 or v4"),
        (("--private",), "--private is about a repository on the hub; add --push-to-hub REPO_ID"),
        (("--push-to-hub", "a/b/c"), "'a/b/c' cannot be the name of a repository"),
    ],
)
def test_contradictions_are_one_line(apply: Run, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    ended = apply(*options)
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(rf"error: {re.escape(said)}[^\n]*\n", ended.err), ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["schedule.json"]


def test_pickled_weights_are_one_line(longrope: Run, model_folder: Path, factors: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    ended = longrope("apply", model, "--factors", factors, "--output", tmp_path / "out")
    assert ended.code == 2
    assert re.fullmatch(r"error: .* holds no \*\.safetensors weights; .*\n", ended.err)
    assert not (tmp_path / "out").exists()


# The hub


class FakeApi:
    """Keeps what it is asked; raises what a test says."""

    calls: list[tuple[Any, ...]]
    failure: Exception | None = None

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("create", repo_id, private, exist_ok))
        return type("RepoUrl", (str,), {"repo_id": f"me/{repo_id}"})("url")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    api = type("Api", (FakeApi,), {"calls": []})
    monkeypatch.setattr("huggingface_hub.HfApi", api)
    return api


@pytest.mark.parametrize(("options", "private"), [((), None), (("--private",), True)])
def test_push(apply: Run, hub: type[FakeApi], tmp_path: Path, options: tuple[str, ...], private: bool | None) -> None:
    ended = apply("--push-to-hub", "tiny-1k", *options)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("pushed: https://hub/me/tiny-1k/commit/1\n")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert hub.calls == [("create", "tiny-1k", private, True), ("upload", "me/tiny-1k", written)]
    assert {"README.md", "longrope.json", "model.safetensors"} <= set(written)
    assert 'from_pretrained("tiny-1k"' in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "failure", [OSError("401 Unauthorized\nlog in"), ValueError(""), ConnectionError("no network")]
)
def test_failed_push_is_one_line_and_the_folder_stays(
    apply: Run, hub: type[FakeApi], tmp_path: Path, failure: Exception
) -> None:
    hub.failure = failure
    ended = apply("--push-to-hub", "me/tiny")
    assert ended.code == 1
    assert re.fullmatch(r"error: \S*out is written, but could not be pushed to me/tiny \(\S[^\n]*\n", ended.err)
    assert "`hf upload me/tiny " in ended.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.max_position_embeddings == 1024


# The card's commands


def test_commands_on_the_card_give_the_same_factors_again(
    longrope: Run,
    searched: SearchReport,
    pools: list[InProcessPool],
    model_folder: Path,
    documents_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat = tmp_path / "flat.json"
    searched.factors.replace(n_hat=0).save(flat)
    assert longrope("apply", model_folder, "--factors", flat, "--output", tmp_path / "out").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / model_folder.name).symlink_to(model_folder)
    (tmp_path / documents_file.name).symlink_to(documents_file)
    (command,) = re.findall(r"^To search again:\n\n    longrope (.*)$", card, re.MULTILINE)
    assert longrope(*shlex.split(command)).code == 0
    assert load_factors(tmp_path / "RUN" / "factors.json") == searched.factors
    (command,) = re.findall(r"^    longrope (apply .*)$", card, re.MULTILINE)
    monkeypatch.chdir(tmp_path / "out")
    (tmp_path / "out" / model_folder.name).symlink_to(model_folder)
    assert longrope(*shlex.split(command)).code == 0
    again = tmp_path / "out" / "FOLDER"
    assert config_of(again) == config_of(tmp_path / "out")
    assert (again / "longrope.json").read_bytes() == (tmp_path / "out" / "longrope.json").read_bytes()
