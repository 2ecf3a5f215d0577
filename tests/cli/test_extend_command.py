"""`longrope extend` and `longrope status` on the command line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_search import InProcessPool

from longrope.evaluation import run as evaluation_run
from longrope.pipeline.recipe import ready_recipes
from longrope.pipeline.run import on_cluster
from longrope.pipeline.state import LOCK_FILE, RUNNING, RunState, StageState, open_state
from longrope.runs.locks import FolderLock
from longrope.search import run as search_run
from longrope.search.solve import describe_duration

Run = Callable[..., Any]
SMALL = "{algorithm: paper, population: 4, mutations: 1, crossovers: 1, iterations: 1, parents: 2, n_hat: [0]}"
RECIPE = f"""\
model: MODEL
data: {{documents: {{source: DOCUMENTS, samples: 2}}}}
execution: {{workers: 1}}
stages:
  - search: {{target_length: 128, data: {{held_out: 2}}, algorithm: {SMALL}}}
  - evaluate: {{suite: perplexity, lengths: [64, 128]}}
  - export:
"""


@pytest.fixture
def recipe(
    model_folder: Path, documents_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Writes a recipe beside the folder that the command is run in; runs start no workers and write no report."""
    for module in (search_run, evaluation_run):
        monkeypatch.setattr(module, "make_pool", lambda factory, *others: InProcessPool(factory))
    monkeypatch.setattr("longrope.pipeline.run.find_spec", lambda name: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(text: str = RECIPE) -> Path:
        path = tmp_path / "longer.yaml"
        path.write_text(text.replace("MODEL", str(model_folder)).replace("DOCUMENTS", str(documents_file)))
        return path

    return write


def error(outcome: Any) -> str:
    """What is said after `error: `, alone and on one line."""
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    return str(line.removeprefix("error: "))


def test_a_recipe_is_carried_out_in_a_folder_of_its_name(longrope: Run, recipe: Callable[..., Path]) -> None:
    code, out, err = longrope("extend", recipe(), "evaluate-perplexity.lengths=[32,128]", "seed=3")
    assert code == 0, err
    run = Path("runs", "longer").resolve()
    state = open_state(run)
    assert list(state.stages) == ["search-128", "evaluate-perplexity", "export"]
    assert {stage.inputs["settings"].get("seed", 3) for stage in state.stages.values()} == {3}
    rows = state.stages["evaluate-perplexity"].results["table"]
    assert [row["length"] for row in rows] == [32, 128]
    assert all(f"{row['perplexity']:.4f}" in out for row in rows)
    assert f"model: {run / 'export'}" in out
    assert "[2/3] evaluate-perplexity: perplexity of the model at 32, 128" in err.splitlines()
    assert "no report: matplotlib is not installed (pip install longrope[report])" in err.splitlines()

    shown = longrope("status", run)
    assert shown.code == 0
    assert shown.err == ""
    for name, stage in state.stages.items():
        (line,) = (line for line in shown.out.splitlines() if name in line)
        assert stage.told in line
        assert "done" in line
    assert str(state.finished) in shown.out

    again = longrope("extend", recipe(), "evaluate-perplexity.lengths=[32,128]", "seed=3")
    assert again.code == 0
    assert again.err.count(": done before, in ") == 3
    assert again.out == out


def test_another_folder_and_a_cluster_can_be_chosen(
    longrope: Run, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = []
    monkeypatch.setattr("longrope.pipeline.run.extend", lambda *arguments: given.append(arguments) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        longrope("extend", recipe(), "--output", tmp_path / "there", "--ray-address", "10.0.0.1:6379")
    ((read, folder, _, force),) = given
    assert not force
    assert folder == tmp_path / "there"
    assert read == on_cluster(read, "10.0.0.1:6379")
    assert {stage.settings.execution.ray_address for stage in read.stages[:2]} == {"10.0.0.1:6379"}


def test_an_unknown_recipe_is_answered_with_those_that_there_are(longrope: Run) -> None:
    told = error(longrope("extend", "lama2-7b"))
    assert told.startswith("recipe 'lama2-7b' does not exist; give a YAML file, or one that comes with longrope: ")
    assert all(name in told for name in ready_recipes())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["seed"], "'seed' is no change of a setting; write for example seed=1"),
        (["sed=1"], "neither a setting nor a stage 'sed'; its stages are search-128, evaluate-perplexity, export"),
        (["model=nowhere/at/all"], "'nowhere/at/all' does not exist"),
        (["search-128.target_length=32"], "evaluate-perplexity measures 128, over the 32"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_and_nothing_is_written(
    longrope: Run, recipe: Callable[..., Path], changes: list[str], expected: str
) -> None:
    assert expected in error(longrope("extend", recipe(), *changes))
    assert not Path("runs").exists()


def test_a_stage_that_cannot_be_done_is_shown_with_its_reason(longrope: Run, recipe: Callable[..., Path]) -> None:
    changes = ["search-128.target_length=64", "evaluate-perplexity.lengths=[64]"]
    refused = error(longrope("extend", recipe(), *changes))
    assert "line 5: search-64: target length 64 is not longer than the present window" in refused
    assert refused.endswith("(nothing was started; --force begins all the same)")
    assert not Path("runs").exists()
    failed = longrope("extend", recipe(), *changes, "--force")
    assert any(line.startswith("note: ") and "target length 64" in line for line in failed.err.splitlines())
    assert failed.code == 2
    assert failed.err.splitlines()[-1].startswith("error: target length 64 is not longer than the present window")
    shown = longrope("status", "runs/longer")
    assert shown.code == 0
    assert "failed" in shown.out
    assert "not longer than the present" in " ".join(shown.out.replace("│", "").split())


def test_a_stage_whose_process_is_gone_was_interrupted(longrope: Run, tmp_path: Path) -> None:
    stages = {"search-128": StageState("search", "search factors for 128", state=RUNNING, started=0.0)}
    RunState("longer", stages).save(tmp_path)
    shown = longrope("status", tmp_path)
    assert "search-128 was interrupted; the same `longrope extend` goes on with it" in shown.out
    lock = FolderLock(tmp_path / LOCK_FILE)
    lock.acquire()
    shown = longrope("status", tmp_path)
    lock.release()
    assert "interrupted" not in shown.out


def test_a_stage_at_work_has_taken_time_already(longrope: Run, tmp_path: Path) -> None:
    begun = time.time() - 5 * 3600
    stages = {"search-128": StageState("search", "search factors", state=RUNNING, started=begun, seconds=3600.0)}
    RunState("longer", stages).save(tmp_path)
    own = tmp_path / "search-128" / "evaluations.jsonl"
    own.parent.mkdir()
    own.write_text("")
    os.utime(own, (begun + 2 * 3600, begun + 2 * 3600))
    assert describe_duration(3 * 3600.0) in longrope("status", tmp_path).out  # killed an age ago
    lock = FolderLock(tmp_path / LOCK_FILE)
    lock.acquire()
    shown = longrope("status", tmp_path)
    lock.release()
    assert describe_duration(6 * 3600.0) in shown.out


def test_a_folder_without_a_run_has_no_status(longrope: Run, tmp_path: Path) -> None:
    assert error(longrope("status", tmp_path)) == (
        f"{tmp_path} holds no run of a recipe (extend.json); give the output of `longrope extend`"
    )
    (tmp_path / "extend.json").write_text(json.dumps({"stages": {"a": {"kin": "search"}}}))
    assert error(longrope("status", tmp_path)).endswith(
        "; was it changed? Put it back as it was, or give another output folder"
    )
