"""Runs that are killed, cut short or resumed by mistake."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_search import InProcessPool, search_in_process, settings

from longrope.exceptions import RunExistsError, UnsupportedModelError
from longrope.runs.journal import read_journal
from longrope.runs.progress import Progress
from longrope.search.candidate import Candidate
from longrope.search.search import SearchReport, search
from longrope.search.settings import SearchSettings
from longrope.workers.settings import ExecutionSettings

JOURNAL = "evaluations.jsonl"


def pairs(journal: Path) -> list[tuple[Candidate, str]]:
    """What was evaluated, in order."""
    events = [event for event in read_journal(journal)[1] if event["kind"] != "batch"]
    return [(Candidate.from_dict(event["candidate"]), event["sample"]) for event in events]


def scores(journal: Path) -> dict[tuple[Candidate, str], list[float]]:
    """The NLL sums of every evaluation."""
    events = [event for event in read_journal(journal)[1] if event["kind"] == "evaluation"]
    return {(Candidate.from_dict(event["candidate"]), event["sample"]): event["nll"] for event in events}


@pytest.fixture(scope="module")
def given(model_folder: Path, documents_file: Path) -> Callable[..., SearchSettings]:
    def make(output: Path, **more: Any) -> SearchSettings:
        return settings(model_folder, documents_file, output, **more)

    return make


@pytest.fixture(scope="module")
def finished(given: Callable[..., SearchSettings], tmp_path_factory: pytest.TempPathFactory) -> SearchReport:
    """A search that nothing disturbed."""
    return search_in_process(given(tmp_path_factory.mktemp("runs") / "finished"))[0]


class KillsEvaluator(Progress):
    """Kills every evaluator once, when the search has come some way."""

    def __init__(self, after: int) -> None:
        self._left = after
        self.notes: list[str] = []
        self.killed: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self) -> None:
        self._left -= 1
        if self._left == 0:
            for process in multiprocessing.active_children():
                if process.name.startswith("evaluator-"):
                    os.kill(process.pid, signal.SIGKILL)
                    self.killed.append(process.name)


def test_a_killed_evaluator_changes_nothing(
    given: Callable[..., SearchSettings], finished: SearchReport, tmp_path: Path
) -> None:
    progress = KillsEvaluator(after=10)
    report = search(given(tmp_path / "run"), progress)
    assert progress.killed == ["evaluator-0"]
    assert "evaluator 0 died (signal 9), replaced" in progress.notes
    assert (report.folder / "factors.json").read_bytes() == (finished.folder / "factors.json").read_bytes()
    evaluated = pairs(report.folder / JOURNAL)
    assert len(set(evaluated)) == len(evaluated)
    assert {event["kind"] for event in read_journal(report.folder / JOURNAL)[1]} == {"evaluation"}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_killed_driver_is_resumed_to_the_same_result(
    batch: int, given: Callable[..., SearchSettings], model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    # Long enough to be killed in the middle, whatever else the machine is doing.
    sizes = {
        "algorithm": "paper",
        "population": 24,
        "mutations": 8,
        "crossovers": 8,
        "iterations": 15,
        "parents": 12,
        "n_hat": (0, 8),
    }
    execution = ExecutionSettings(workers=1, batch=batch)
    expected, _ = search_in_process(given(tmp_path / "undisturbed", algorithm=sizes, execution=execution))
    run = tmp_path / "killed"
    command = [
        sys.executable, "-m", "longrope", "search", str(model_folder), "--data", str(documents_file),
        "--output", str(run), "--target-length", "128", "--samples", "2", "--held-out", "3", "--workers", "1",
        "--algorithm", "paper", "--population", "24", "--mutations", "8", "--crossovers", "8", "--iterations", "15",
        "--parents", "12", "--n-hat", "0,8",
    ]  # fmt: skip
    journal = run / JOURNAL
    with subprocess.Popen(
        [*command, "--batch", str(batch)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as driver:
        while driver.poll() is None and _lines(journal) < 20:
            time.sleep(0.002)
        driver.kill()
        _, errors = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, errors
    before = journal.read_bytes()
    assert not (run / "factors.json").exists()

    # Another batch than the recorded one would change the last bits, so it is not used.
    resumed = subprocess.run([*command, "--resume", "--batch", "3"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert (run / "factors.json").read_bytes() == (expected.folder / "factors.json").read_bytes()
    assert journal.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    evaluated = pairs(journal)
    assert len(set(evaluated)) == len(evaluated)
    assert set(evaluated) == set(pairs(expected.folder / JOURNAL))
    assert f"begun with {batch} candidate(s) in one forward pass and goes on so, not with 3" in resumed.stderr
    assert scores(journal) == scores(expected.folder / JOURNAL)
    assert "longrope" in resumed.stdout
    assert "%|" not in resumed.stderr  # how a worker loads its weights is of no interest


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 1.0])
def test_a_torn_journal_is_resumed_to_the_same_result(
    share: float, given: Callable[..., SearchSettings], finished: SearchReport, tmp_path: Path
) -> None:
    whole = (finished.folder / JOURNAL).read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = lines[: round(share * len(lines))]
    torn = lines[len(kept)][: len(lines[len(kept)]) // 2] if share < 1 else b""
    run = tmp_path / "run"
    run.mkdir()
    (run / JOURNAL).write_bytes(b"".join(kept) + torn)
    report, pool = search_in_process(given(run, resume=True))
    assert (run / "factors.json").read_bytes() == (finished.folder / "factors.json").read_bytes()
    assert report.table.equals(finished.table)
    missing = pairs(finished.folder / JOURNAL)[max(len(kept) - 1, 0) :]
    assert [(task.candidate, task.sample) for task in pool.asked] == missing
    assert pairs(run / JOURNAL) == pairs(finished.folder / JOURNAL)


def test_a_finished_run_may_be_resumed_and_costs_nothing(
    given: Callable[..., SearchSettings], finished: SearchReport, tmp_path: Path
) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    _, pool = search_in_process(given(run, resume=True))
    assert pool.asked == []
    for name in ("factors.json", "results.csv", "run.json", JOURNAL):
        assert (run / name).read_bytes() == (finished.folder / name).read_bytes(), name


def test_resuming_where_nothing_was_begun_begins(
    given: Callable[..., SearchSettings], finished: SearchReport, tmp_path: Path
) -> None:
    report, _ = search_in_process(given(tmp_path / "run", resume=True))
    assert (report.folder / "factors.json").read_bytes() == (finished.folder / "factors.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 1}, "seed: then 0, now 1"),
        ({"target_length": 192}, "target_length: then 128, now 192"),
        ({"algorithm": {"population": 9}}, "population: then 8, now 9"),
        ({"algorithm": {"n_hat": (0, 4)}}, "n_hat_choices: then [0, 4, 16], now [0, 4]"),
        ({"algorithm": {"lambda_max": 3.0}}, "lambda_max: then 2.5, now 3.0"),
        ({"algorithm": {"attention_factor": "none"}}, "attention_factor: then 1.08"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    changes: dict[str, Any],
    difference: str,
    given: Callable[..., SearchSettings],
    finished: SearchReport,
    tmp_path: Path,
) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(RunExistsError) as refused:
        search_in_process(given(run, resume=True, **changes))
    assert difference in str(refused.value)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_is_not_resumed_with_other_numerics_but_with_more_workers(
    given: Callable[..., SearchSettings], finished: SearchReport, tmp_path: Path
) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    mine = given(run, resume=True)
    for changes, difference in (
        ({"dtype": "bf16"}, 'dtype: then "float32", now "bfloat16"'),
        ({"attention": "eager"}, 'attention: then "sdpa", now "eager"'),
        ({"threads_per_worker": 2}, "threads_per_worker: then 1, now 2"),
    ):
        with pytest.raises(RunExistsError) as refused:
            search_in_process(replace(mine, execution=replace(mine.execution, **changes)))
        assert difference in str(refused.value)
    _, pool = search_in_process(replace(mine, execution=replace(mine.execution, workers=7)))
    assert pool.asked == []


def test_a_run_is_not_resumed_with_another_model_or_other_texts(
    given: Callable[..., SearchSettings],
    finished: SearchReport,
    model_folder: Path,
    documents_file: Path,
    tmp_path: Path,
) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    model = shutil.copytree(model_folder, tmp_path / "model")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunExistsError, match=r'model: then "[0-9a-f]{16}", now "[0-9a-f]{16}"'):
        search_in_process(replace(given(run, resume=True), model=str(model)))

    other = tmp_path / "documents.jsonl"
    other.write_text(documents_file.read_text().replace("rotations", "positions"))
    data = given(run).data
    with pytest.raises(RunExistsError, match=r"samples\.search\.0: then "):
        search_in_process(given(run, resume=True, data=replace(data, source=str(other))))
    # The same model and texts elsewhere are the same run.
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    shutil.copy(documents_file, tmp_path / "moved.jsonl")
    data = replace(data, source=str(tmp_path / "moved.jsonl"))
    _, pool = search_in_process(replace(given(run, resume=True), model=str(moved), data=data))
    assert pool.asked == []


def test_a_folder_with_a_run_is_not_written_to_unasked(
    given: Callable[..., SearchSettings], finished: SearchReport, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished.folder / JOURNAL, run)
    with pytest.raises(RunExistsError, match=r"holds another run \(evaluations\.jsonl\); go on with it by --resume"):
        search_in_process(given(run))
    assert [path.name for path in run.iterdir()] == [JOURNAL]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kept", ["factors.json", f"window-256/{JOURNAL}"])
def test_what_is_no_search_to_go_on_with_is_not_overwritten(
    kept: str, resume: bool, given: Callable[..., SearchSettings], finished: SearchReport, tmp_path: Path
) -> None:
    (tmp_path / "run" / kept).parent.mkdir(parents=True)
    shutil.copy(finished.folder / Path(kept).name, tmp_path / "run" / kept)
    with pytest.raises(RunExistsError, match=rf"holds another run \({kept}\); choose another$"):
        search_in_process(given(tmp_path / "run", resume=resume))


def test_a_run_that_could_not_start_leaves_the_folder_free(
    given: Callable[..., SearchSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(factory: object, *others: object) -> InProcessPool:
        raise UnsupportedModelError("the weights cannot be loaded")

    monkeypatch.setattr("longrope.search.run.make_pool", broken)
    with pytest.raises(UnsupportedModelError):
        search(given(tmp_path / "run"))
    monkeypatch.undo()
    search_in_process(given(tmp_path / "run"))


def test_an_output_that_is_a_file_is_refused(given: Callable[..., SearchSettings], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunExistsError, match="is a file"):
        search_in_process(given(tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "mine"
