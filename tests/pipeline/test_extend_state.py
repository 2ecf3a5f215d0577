"""What a run remembers survives its file, and keys change with what decides a result and with nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_recipes import RECIPE, STAGES, write_recipe
from tiny_search import write_documents, write_model

from longrope.evaluation.settings import EvaluationSettings, PerplexitySettings
from longrope.exceptions import InvalidInputError, RunExistsError
from longrope.finetune.settings import FinetuneSettings
from longrope.pipeline import recipe as recipe_reader
from longrope.pipeline.inputs import key_of, stage_inputs
from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.run import on_cluster
from longrope.pipeline.stages import ExportSettings, Recipe
from longrope.pipeline.state import (
    DONE,
    LOCK_FILE,
    STATE_FILE,
    STATES,
    RunState,
    StageState,
    differences,
    is_at_work,
    last_sign,
    open_state,
)
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear
from longrope.runs.locks import FolderLock
from longrope.search.readjust import ReadjustSettings
from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
from longrope.workers.settings import ExecutionSettings

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.text(), VALUES, max_size=4)
STAGE_STATES = st.builds(
    StageState,
    kind=st.text(),
    told=st.text(),
    inputs=RECORDS,
    key=st.text(),
    state=st.sampled_from(STATES),
    started=st.none() | NUMBERS,
    seconds=NUMBERS,
    results=RECORDS,
    error=st.none() | st.text(),
)
RUN_STATES = st.builds(
    RunState,
    recipe=st.text(),
    stages=st.dictionaries(st.text(), STAGE_STATES, max_size=3),
    finished=st.none() | st.text(),
    model=st.none() | st.dictionaries(st.text(), st.none() | st.text(), max_size=3),
)


@settings(max_examples=25)  # of files that are waited for until they are on the disk
@given(state=RUN_STATES)
def test_a_state_survives_its_file(state: RunState, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "state"
    state.save(folder)
    read = RunState.read(folder)
    assert read == state
    assert read is not None
    assert list(read.stages) == list(state.stages)  # in their order


@given(one=RECORDS, other=RECORDS)
def test_equal_inputs_have_equal_keys_and_differences_are_told(one: dict[str, Any], other: dict[str, Any]) -> None:
    again = json.loads(json.dumps(one))
    assert key_of(dict(reversed(again.items()))) == key_of(one)
    assert differences(one, again) == []
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key_of(one) == key_of(other)) == same
    assert bool(differences(one, other)) <= (one != other)


def test_a_difference_is_told_with_its_place() -> None:
    then = {"algorithm": {"population": 32, "n_hat": [0]}, "data": "a", "gone": 1}
    now = {"algorithm": {"population": 64, "n_hat": [0]}, "data": "a", "new": "x" * 60}
    assert differences(then, now) == [
        "algorithm.population: 64, was 32",
        "gone: null, was 1",
        f'new: "{"x" * 36}..., was null',
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"recipe": "a"}', '{"recipe": "a", "finished": null, "stages": {"a": 1}}'])
def test_a_state_that_cannot_be_read_is_said(text: str, tmp_path: Path) -> None:
    with pytest.raises(RunExistsError, match="holds no run of a recipe"):
        open_state(tmp_path)
    (tmp_path / STATE_FILE).write_text(text)
    with pytest.raises(InvalidInputError, match=r"extend.json cannot be read \(.*\); was it changed\? Put it back .*$"):
        open_state(tmp_path)


def test_a_killed_stage_lived_until_it_last_wrote(tmp_path: Path) -> None:
    assert last_sign(tmp_path / "none") is None
    assert last_sign(tmp_path) is None
    (tmp_path / "deep").mkdir()
    for path in (tmp_path / "early", tmp_path / "deep" / "late"):
        path.write_text("")
    assert last_sign(tmp_path) == (tmp_path / "deep" / "late").stat().st_mtime


# --- Keys ---

FACTORS = RopeFactors.identity(10000.0, 16, 64)
CHANGES: dict[str, dict[str, str]] = {
    "search-128": {
        "target_length": "192",
        "seed": "1",
        "data.field": "body",
        "data.split": "test",
        "data.revision": "main",
        "data.config": "en",
        "data.samples": "3",
        "data.held_out": "4",
        "data.concatenate": "true",
        "data.max_documents": "9",
        "data.objective": "needle",
        "data.last": "64",
        "execution.dtype": "bfloat16",
        "execution.attention": "eager",
        "execution.threads_per_worker": "2",
        "execution.sp": "2",
        "algorithm.population": "9",
        "algorithm.mutations": "3",
        "algorithm.crossovers": "3",
        "algorithm.parents": "4",
        "algorithm.iterations": "3",
        "algorithm.mutation_probability": "0.2",
        "algorithm.max_evaluations": "7",
        "algorithm.max_gpu_hours": "1.5",
        "algorithm.patience": "3",
        "algorithm.racing": "true",
        "algorithm.watch": "2",
        "algorithm.n_hat": "[0, 4]",
        "algorithm.lambda_max": "3.5",
        "algorithm.attention_factor": "yarn",
    },
    "finetune-128": {
        "seq_length": "96",
        "field": "body",
        "split": "test",
        "steps": "6",
        "windows": "[64, 128]",
        "attention_factor": "shared",
        "learning_rate": "2.0e-3",
        "schedule": "cosine",
        "warmup": "2",
        "betas": "[0.9, 0.99]",
        "weight_decay": "0.1",
        "max_grad_norm": "0.5",
        "global_batch": "4",
        "micro_batch": "2",
        "group": "32",
        "zero": "2",
        "offload": "optimizer",
        "sp": "2",
        "precision": "bf16",
        "tf32": "false",
        "method": "lora",
        "attention": "shifted-sparse",
        "adapter": "{rank: 4}",
        "seed": "1",
        "keep_windows": "false",
        "factors": "{method: pi}",
    },
    "readjust": {"windows": "[32]", "seed": "1", "data.samples": "3", "algorithm.n_hat": "[0, 4]"},
    "after": {
        "lengths": "[64]",
        "methods": "[none, longrope]",
        "seed": "1",
        "model": "original",
        "field": "body",
        "split": "test",
        "revision": "main",
        "config": "en",
        "samples": "2",
        "concatenate": "true",
        "max_documents": "9",
        "document_length": "512",
        "protocol": "sliding",
        "stride": "8",
        "last": "3",
        "execution.dtype": "bfloat16",
    },
    "export": {
        "code": "true",
        "without_n_hat": "true",
        "short_window": "64",
        "single_list": "true",
        "attention_factor": "short",
        "config_format": "v4",
        "config_only": "true",
        "copy": "true",
    },
}
"""Every setting that decides the result of a stage, and another value of it."""
FREE_TRAINING = {
    "memory": "{tile_mlp: 64}",
    "save_steps": "7",
    "save_limit": "5",
    "log_steps": "3",
    "held_out": "{samples: 3}",
    "report_to": "[tensorboard]",
    "kernel": "sdpa",
    "launch": "{gpus: 2, launcher: torchrun, max_failures: 9}",
}
FREE_EXECUTION = {
    "workers": "3",
    "gpus_per_worker": "0.5",
    "batch": "4",
    "executor": "ray",
    "ray_address": "1.2.3.4:6379",
    "device": "cuda",
}
"""Settings that decide how and where, and not what."""
DECIDED = {"model", "output", "resume", "revision", "factors", "trust_remote_code"}
"""Settings that the recipe or the stages before fill in."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, documents and the tiny recipe; not to be changed."""
    folder = tmp_path_factory.mktemp("keys")
    write_model(folder / "model")
    write_documents(folder / "documents.jsonl", words=20)
    named = re.sub(r"(search|finetune): {((target|seq)_length: (\d+))", r"\1: {name: \1-\4, \2", RECIPE)
    write_recipe(folder / "recipe.yaml", Path("model"), Path("documents.jsonl"), named)
    return folder


def keys(recipe: Recipe) -> dict[str, str]:
    """The key of every stage."""
    return {name: key_of(inputs) for name, inputs in stage_inputs(recipe).items()}


def read(place: Path, *changes: str) -> Recipe:
    """The recipe in a folder, in whatever order its stages are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_reader, "check_order", lambda stages: None)
        return read_recipe(place / "recipe.yaml", changes)


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Stages with other keys."""
    return [name for name in before if before[name] != after[name]]


DEPEND = {
    "search-128": list(STAGES[1:]),
    "finetune-128": list(STAGES[2:]),
    "readjust": list(STAGES[4:]),
    "after": ["after"],
    "export": ["export", "served"],
}


@pytest.mark.parametrize("stage", list(CHANGES))
def test_every_decisive_setting_changes_the_keys_of_its_stage_and_of_what_depends_on_it(
    stage: str, place: Path
) -> None:
    plain = keys(read(place))
    needs = {"offload": "zero=1", "sp": "zero=1", "group": "attention=shifted-sparse"}
    for name, value in CHANGES[stage].items():
        needed = [f"{stage}.{needs[name]}"] if name in needs else []
        before = keys(read(place, *needed)) if needed else plain
        after = keys(read(place, *needed, f"{stage}.{name}={value}"))
        assert changed(before, after) == DEPEND[stage], name


def test_a_run_from_before_last_tokens_could_be_asked_for_is_gone_on_with(place: Path) -> None:
    inputs = stage_inputs(read(place))
    assert "samples" in inputs["search-128"]["settings"]["data"]
    assert not any("last" in inputs[stage]["settings"]["data"] for stage in ("search-128", "readjust"))
    asked = stage_inputs(read(place, "search-128.data.last=64"))
    assert asked["search-128"]["settings"]["data"]["last"] == 64


def test_every_setting_is_known_to_decide_or_not_to() -> None:
    def names(kind: Any) -> set[str]:
        return {each.name for each in dataclasses.fields(kind)}

    def known(stage: str, inner: str = "") -> set[str]:
        return {each.removeprefix(inner).partition(".")[0] for each in CHANGES[stage] if each.startswith(inner)}

    assert known("search-128") == names(SearchSettings) - DECIDED
    assert known("search-128", "data.") == names(DataSettings) - {"source"}
    assert known("search-128", "algorithm.") == names(AlgorithmSettings) - {"algorithm"}  # others have other sizes
    execution = names(ExecutionSettings) - {"trust_remote_code"}
    assert known("search-128", "execution.") | {*FREE_EXECUTION} == execution
    training = names(FinetuneSettings) - DECIDED - {"data"}
    assert known("finetune-128") | {*FREE_TRAINING} == training | {"keep_windows", "factors", "launch"}
    assert known("readjust") == names(ReadjustSettings) - DECIDED - {"execution"}
    evaluation = (names(EvaluationSettings) - DECIDED) | (names(PerplexitySettings) - {"source"})
    assert known("after") == evaluation | {"model"}
    assert known("export") == names(ExportSettings)


def test_how_and_where_change_no_key(place: Path) -> None:
    recipe = read(place)
    before = keys(recipe)
    changes = [[f"finetune-128.{name}={value}"] for name, value in FREE_TRAINING.items()]
    changes += [["execution.executor=ray", f"execution.{name}={value}"] for name, value in FREE_EXECUTION.items()]
    for change in changes:
        other = read(place, *change)
        assert other.stages != recipe.stages
        assert keys(other) == before, change
    assert keys(on_cluster(recipe, "1.2.3.4:6379")) == before


def test_moved_files_of_equal_content_change_no_key(place: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(place, tmp_path / "elsewhere")
    assert keys(read(moved)) == keys(read(place))


def test_other_data_of_the_same_size_change_the_keys_of_what_reads_them(place: Path, tmp_path: Path) -> None:
    content = (place / "documents.jsonl").read_text()
    other = tmp_path / "documents.jsonl"
    other.write_text(content.replace("window", "widnow", 1))
    before = keys(read(place))
    assert changed(before, keys(read(place, f"data.evaluation.source={other}"))) == ["before", "after", "served"]
    assert changed(before, keys(read(place, f"data.training={other}"))) == list(STAGES[2:])
    assert changed(before, keys(read(place, f"readjust.data.source={other}"))) == list(STAGES[4:])
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("sources: {all: {path: documents.jsonl}}\n")
    mixed = keys(read(place, f"data.training={mixture}"))
    other.write_text(content)
    assert changed(mixed, keys(read(place, f"data.training={mixture}"))) == list(STAGES[2:])


def test_other_weights_change_every_key(place: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(place, tmp_path / "elsewhere")
    before = keys(read(moved))
    weights = moved / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert changed(before, keys(read(moved))) == list(STAGES)


def test_factors_of_a_file_count_by_their_content(place: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.json", "same.json", "other.json")]
    for path, target in zip(files, (128, 128, 256), strict=True):
        linear(FACTORS, target).save(path)
    one, same, other = (keys(read(place, f"finetune-128.factors={path}")) for path in files)
    assert one == same
    assert changed(one, other) == list(STAGES[2:])


def test_a_run_is_at_work_as_long_as_it_is_locked(tmp_path: Path) -> None:
    assert not is_at_work(tmp_path)
    assert list(tmp_path.iterdir()) == []  # which may be another user's
    lock = FolderLock(tmp_path / LOCK_FILE)
    lock.acquire()
    (tmp_path / LOCK_FILE).chmod(0o444)
    assert is_at_work(tmp_path)
    lock.release()
    assert not is_at_work(tmp_path)


def test_a_clock_that_is_set_back_takes_no_time_away(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = StageState("search", "", seconds=7.0)
    stage.begin()
    monkeypatch.setattr("longrope.pipeline.state.time.time", lambda: 0.0)
    stage.end(DONE)
    assert (stage.state, stage.seconds, stage.started) == (DONE, 7.0, None)
