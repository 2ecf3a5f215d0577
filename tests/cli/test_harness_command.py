"""`longrope evaluate harness` from the command line, with a task of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longrope.evaluation import harness_model, run
from longrope.evaluation.suite import Task
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.workers.pool import EvaluationPool, EvaluatorFactory

Run = Callable[..., Any]


class InProcessPool(EvaluationPool[Task, Any]):
    """Evaluates here."""

    def __init__(self, factory: EvaluatorFactory, *others: object) -> None:
        self.workers, self._evaluator = 1, factory()

    def start(self) -> None:
        pass

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        for task in tasks:
            yield task, self._evaluator.evaluate(task)

    def close(self) -> None:
        pass


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Two questions, one of them longer than the model's window of 64 tokens."""
    questions = tmp_path / "questions.jsonl"
    texts = ["a b", "the river runs to the sea " * 4]
    questions.write_text("".join(json.dumps({"text": text, "answer": 0}) + "\n" for text in texts))
    path = tmp_path / "letters.yaml"
    path.write_text(
        f"task: letters\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {questions}}}, "
        f"cache_dir: {tmp_path / 'cache'}}}\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{text}}'\ndoc_to_choice: [x, y]\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: acc}]\n"
    )
    return path


def test_a_task_under_two_methods(
    longrope: Run, model_folder: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "make_pool", InProcessPool)
    yarn(RopeFactors.identity(10000.0, 16, 64), 256).save(tmp_path / "factors.json")
    given = (
        "evaluate", "harness", model_folder, "--tasks", task, "--factors", tmp_path / "factors.json",
        "--methods", "none,longrope", "--num-fewshot", 0, "--batch-size", 2, "--output", tmp_path / "run",
    )  # fmt: skip
    ended = longrope(*given)
    assert ended.code == 0, ended.err
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert list(zip(table["method"], table["task"], table["metric"], table["samples"], strict=True)) == [
        ("none", "letters", "acc", 2), ("longrope", "letters", "acc", 2),
    ]  # fmt: skip
    assert all(f"{value:.4f}" in ended.out for value in table["value"])
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (record["suite"], record["max_length"], record["lengths"]) == ("harness", 256, [64, 256])

    def scored(*arguments: object) -> None:
        raise AssertionError("what was answered is asked again")

    # As if it had been killed after its last response, before the task was summed up.
    journal = tmp_path / "run" / "evaluation.jsonl"
    journal.write_text(journal.read_text().splitlines()[0] + "\n")
    monkeypatch.setattr(harness_model, "score_continuations", scored)
    ended = longrope(*given, "--resume")
    assert ended.code == 0, ended.err
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "results.csv"), table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--metadata", "{"), "error: --metadata '{' is not JSON"),
        (("--metadata", "[1]"), "error: --metadata '[1]' is not an object"),
        (("--max-length", "2x"), "error: length '2x'"),
        (("--methods", "magic"), "error: method 'magic' is not known"),
        (("--tasks", "letters.yml"), "error: task file letters.yml does not exist"),
    ],
)
def test_bad_input(
    longrope: Run, model_folder: Path, task: Path, tmp_path: Path, changes: tuple[str, str], message: str
) -> None:
    ended = longrope("evaluate", "harness", model_folder, "--tasks", task, "--output", tmp_path / "run", *changes)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
    assert ended.err.startswith(message)
