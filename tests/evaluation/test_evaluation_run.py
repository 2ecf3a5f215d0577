"""An evaluation as a run: resumed without measuring twice, refused in one line, its files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import killed_evaluation
import pandas as pd
import pytest
from tiny_search import write_model

from longrope.evaluation import run
from longrope.evaluation.open_perplexity import open_perplexity
from longrope.evaluation.run import EvaluationReport, evaluate
from longrope.evaluation.settings import EvaluationSettings, PerplexitySettings
from longrope.evaluation.suite import Task
from longrope.exceptions import FactorsError, InvalidInputError, RunExistsError, RunFailedError, SettingsError
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.runs.journal import read_journal
from longrope.runs.progress import Progress
from longrope.workers.pool import EvaluationPool, EvaluatorFactory, Failure


class Stopped(Exception):
    """The process is gone, as far as the run can tell."""


class InProcessPool(EvaluationPool[Task, Any]):
    """Evaluates here; ``fate`` of a task is None, or the reason why it fails, or raises."""

    def __init__(self, factory: EvaluatorFactory, fate: Callable[[Task], str | None]) -> None:
        self.workers, self.asked = 1, []
        self._evaluator, self._fate = factory(), fate

    def start(self) -> None:
        pass

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        for task in tasks:
            reason = self._fate(task)
            self.asked.append(task)
            yield task, Failure(reason) if reason else self._evaluator.evaluate(task)

    def close(self) -> None:
        pass


@pytest.fixture
def given(model_folder: Path, documents_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs an evaluation of 2 methods, 2 lengths and 3 documents; returns the report and the tasks that were asked."""
    factors = tmp_path / "factors.json"
    yarn(RopeFactors.identity(10000.0, 16, 64), 256).save(factors)

    def go(fate: Callable[[Task], str | None] = lambda task: None, suite: Any = (), **changes: Any) -> Any:
        settings = EvaluationSettings(
            **{
                "model": str(model_folder),
                "output": str(tmp_path / "run"),
                "lengths": (64, 128),
                "factors": str(factors),
                "methods": ("none", "longrope"),
                **changes,
            }
        )
        chosen = PerplexitySettings(**{"source": str(documents_file), "samples": 3, **dict(suite)})
        pools: list[InProcessPool] = []

        def make_pool(factory: EvaluatorFactory, *others: object) -> InProcessPool:
            pools.append(InProcessPool(factory, fate))
            return pools[-1]

        asked: list[Task] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "make_pool", make_pool)
            try:
                report = evaluate(settings, partial(open_perplexity, chosen, settings.lengths, settings.seed))
            except Stopped:
                report = None
        for pool in pools:
            asked += pool.asked
        return report, asked

    return go


def test_a_run_and_its_files(given: Any, tmp_path: Path) -> None:
    report, asked = given()
    assert isinstance(report, EvaluationReport)
    assert len(asked) == len(set(asked)) == 12
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    pd.testing.assert_frame_equal(table, report.table, check_dtype=False)
    assert list(zip(table["method"], table["length"], strict=True)) == [
        ("none", 64), ("none", 128), ("longrope", 64), ("longrope", 128),
    ]  # fmt: skip
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["perplexity"] for row in record["results"]] == pytest.approx(list(table["perplexity"]))
    assert len(pd.read_csv(tmp_path / "run" / "records.csv")) == 12
    short = table[table["length"] == 64]["perplexity"]
    assert short.iloc[0] == short.iloc[1]  # the window of 64 keeps the model's own RoPE
    long = table[table["length"] == 128]["perplexity"]
    assert long.iloc[0] != long.iloc[1]


@pytest.mark.parametrize("before", [0, 1, 7, 12])
def test_an_evaluation_that_was_stopped_measures_nothing_twice(given: Any, before: int) -> None:
    left = iter(range(before))

    def fate(task: Task) -> str | None:
        if next(left, None) is None:
            raise Stopped
        return None

    _, first = given(fate)
    report, second = given(resume=True)
    assert len(first) == before
    assert len(first) + len(second) == len({*first, *second}) == 12
    assert len(report.records) == 12


def test_an_evaluation_that_was_killed_measures_nothing_twice(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", max_position_embeddings=256)
    output = tmp_path / "run"
    killed = subprocess.run([sys.executable, killed_evaluation.__file__, str(model), str(output), "5"], check=False)
    assert killed.returncode == -signal.SIGKILL
    journal = output / "evaluation.jsonl"
    before = journal.read_bytes()
    assert not (output / "results.json").exists()
    killed_evaluation.run(str(model), str(output), Progress(), resume=True)
    assert journal.read_bytes().startswith(before)
    items = [event["item"] for event in read_journal(journal)[1]]
    assert len(items) == len(set(items)) == 8
    assert before.count(b'"item"') == 5
    assert pd.read_csv(output / "results.csv")["trials"].tolist() == [4, 4]


def test_what_failed_is_tried_again(given: Any) -> None:
    report, _ = given(lambda task: "out of memory" if task.method == "longrope" else None)
    assert len(report.failures) == 6
    table = report.table.set_index(["method", "length"])
    assert list(table["failed"]) == [0, 0, 3, 3]
    assert table["perplexity"].isna().tolist() == [False, False, True, True]  # a row all the same
    report, asked = given(resume=True)
    assert len(asked) == 6
    assert not report.failures
    assert len(report.records) == 12
    assert "failed" not in report.table


def test_a_length_that_does_not_fit_is_given_up(given: Any) -> None:
    report, asked = given(lambda task: "out of memory" if task.item.endswith("/128") else None)
    assert [task.item.endswith("/128") for task in asked] == [True] * 3 + [False] * 6  # the longest first
    assert sorted(report.failures.values())[:3] == ["not tried: the first 3 of this length failed"] * 3
    assert report.table["failed"].tolist() == [0, 3, 0, 3]
    report, asked = given(resume=True)
    assert len(asked) == 6
    assert not report.failures


def test_a_length_that_attention_cannot_see_is_marked(given: Any, model_folder: Path) -> None:
    config = model_folder / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "model_type": "mistral", "sliding_window": 100}))
    try:
        table = given(methods=("none",))[0].table
    finally:
        config.write_text(json.dumps(content))
    assert list(zip(table["length"], table["truncated"], strict=True)) == [(64, False), (128, True)]
    assert table["perplexity"].notna().all()


def test_nothing_measured_is_a_failed_run(given: Any) -> None:
    with pytest.raises(RunFailedError, match="no item could be measured: out of memory"):
        given(lambda task: "out of memory")


@pytest.mark.parametrize(
    ("changes", "suite", "message"),
    [
        ({"lengths": (64, 512)}, {}, "length 512 is over the 256"),
        ({"methods": ("none", "magic")}, {}, "use none, pi, ntk, dynamic-ntk, yarn, longrope"),
        ({"factors": None}, {}, "method longrope needs factors"),
        ({}, {"samples": 500}, "500"),
        ({}, {"protocol": "half"}, "use full or sliding"),
        ({}, {"document_length": 100}, "shorter than the length 128"),
        ({}, {"last": 64}, "give at most --last 63"),
        ({}, {"field": "story"}, "story"),
    ],
)
def test_bad_input_is_refused_in_one_line(given: Any, changes: Any, suite: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as refused:
        given(suite=suite, **changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_factors_of_another_model(given: Any, tmp_path: Path) -> None:
    yarn(RopeFactors.identity(10000.0, 32, 64), 256).save(tmp_path / "others.json")
    with pytest.raises(FactorsError):
        given(factors=str(tmp_path / "others.json"))


def test_a_folder_is_of_one_evaluation(given: Any, tmp_path: Path) -> None:
    given()
    with pytest.raises(RunExistsError, match="by --resume"):
        given()
    with pytest.raises(RunExistsError, match="other settings"):
        given(resume=True, lengths=(64, 100))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "mine.txt").write_text("mine")
    with pytest.raises(RunExistsError, match="not empty"):
        given(output=str(tmp_path / "thesis"))


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(SettingsError, match="at least 2 tokens"):
        EvaluationSettings(model="m", output="o", lengths=(1,))


def test_the_longest_window_is_measured_at_every_length(given: Any) -> None:
    report, _ = given(methods=("longrope", "long"))
    found = report.table.set_index(["method", "length"])["perplexity"]
    assert found["long", 128] == found["longrope", 128]
    assert found["long", 64] != found["longrope", 64]  # the model's own window
