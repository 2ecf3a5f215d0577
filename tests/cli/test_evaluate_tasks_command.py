"""`longrope evaluate multi-document-qa` and `longrope evaluate summarisation` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longrope.evaluation import run
from longrope.evaluation.suite import Task
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.rope.policy import FactorSchedule, Window
from longrope.workers.pool import EvaluationPool, EvaluatorFactory

Run = Callable[..., Any]


class InProcessPool(EvaluationPool[Task, Any]):
    """Evaluates here."""

    def __init__(self, factory: EvaluatorFactory) -> None:
        self.workers, self._evaluator = 1, factory()

    def start(self) -> None:
        pass

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        for task in tasks:
            yield task, self._evaluator.evaluate(task)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "make_pool", lambda factory, *others: InProcessPool(factory))


@pytest.fixture
def factors(tmp_path: Path) -> Path:
    path = tmp_path / "factors.json"
    yarn(RopeFactors.identity(10000.0, 64, 256), 512).save(path)
    return path


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def questions(folder: Path) -> Path:
    return write(
        folder / "qa.jsonl",
        [
            {
                "question": f"What is thing {n}?",
                "answers": f"{1000 + n}",
                "gold": {"title": "t", "text": f"Thing {n} is {1000 + n}."},
            }
            for n in range(4)
        ],
    )


def test_questions(longrope: Run, factors: Path, tmp_path: Path) -> None:
    given = (
        "evaluate", "multi-document-qa", "demo", "--data", questions(tmp_path), "--document-field", "gold",
        "--max-length", 256, "--documents", "1,3", "--positions", "start,end", "--samples", 2, "--max-new-tokens", 4,
        "--factors", factors, "--methods", "none,longrope", "--output", tmp_path / "run",
    )  # fmt: skip
    ended = longrope(*given)
    assert ended.code == 0, ended.err
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    rows = [(row.method, row.documents, row.position) for row in table.itertuples()]
    assert rows == [(method, *place) for method in ("none", "longrope") for place in ((1, 0), (3, 0), (3, 1))]
    assert set(table["trials"]) == {2}
    assert "best_subspan_em" in ended.out
    records = pd.read_csv(tmp_path / "run" / "records.csv")
    assert len(records) == 12
    assert records["length"].max() < 256
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (found["lengths"], found["documents"]) == ([256], [1, 3])
    assert longrope(*given, "--resume").code == 0
    events = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    assert len(events) == 1 + 12  # nothing was measured twice


def test_summaries(longrope: Run, tmp_path: Path) -> None:
    data = write(
        tmp_path / "books.jsonl",
        [{"document": "The sky is blue. " * (5 + 50 * n), "summary": "A blue sky."} for n in range(2)],
    )
    ended = longrope(
        "evaluate", "summarisation", "demo", "--data", data, "--max-length", 128, "--max-new-tokens", 5,
        "--prompt", "{document}\nIn short:", "--stemmer", "--output", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "summarisation, standard errors over documents" in ended.out
    (row,) = pd.read_csv(tmp_path / "run" / "results.csv").to_dict("records")
    assert (row["method"], row["truncated"], row["documents"]) == ("none", 1, 2)
    assert 0 <= row["rouge1"] <= 1


def test_the_factors_of_every_window_belong_to_a_run(longrope: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "books.jsonl", [{"document": "The sky is blue. " * 9, "summary": "A blue sky."}])
    plain, factors = RopeFactors.identity(10000.0, 64, 256), tmp_path / "schedule.json"
    given = (
        "evaluate", "summarisation", "demo", "--data", data, "--max-length", "1k", "--max-new-tokens", 2,
        "--factors", factors, "--output", tmp_path / "run",
    )  # fmt: skip
    long = Window(1024, yarn(plain, 1024))
    FactorSchedule((Window(256, plain), long)).save(factors)
    assert longrope(*given).code == 0
    assert longrope(*given, "--resume").code == 0
    FactorSchedule((Window(256, yarn(plain, 512)), long)).save(factors)  # which the document falls into
    ended = longrope(*given, "--resume")
    assert ended.code == 2
    assert "other settings" in ended.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--positions", "top"), "positions 'top' are not places from first to last; write for example"),
        (("--documents", "few"), "documents 'few' are not whole numbers"),
        (("--max-length", "4k,8k"), "length '4k,8k' is not a positive whole number"),
        (("--samples", 0), "samples is 0; give at least 1"),
        (("--max-length", "1k"), "length 1k is over the 512 that "),
        (("--question-field", "q"), "there is no field 'q' in "),
        (("--document-field", "d"), "there is neither a field 'ctxs' nor 'd' in "),
        (("--documents", 9), "9 documents need 8; give more records"),
    ],
)
def test_bad_input(longrope: Run, factors: Path, tmp_path: Path, changes: Any, message: str) -> None:
    ended = longrope(
        "evaluate", "multi-document-qa", "demo", "--data", questions(tmp_path), "--document-field", "gold",
        "--max-length", 512, "--documents", 2, "--factors", factors, "--output", tmp_path / "run", *changes,
    )  # fmt: skip
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_packed_file(longrope: Run, tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl.gz").write_bytes(b"\x1f\x8b")
    ended = longrope(
        "evaluate", "summarisation", "demo", "--data", tmp_path / "qa.jsonl.gz", "--max-length", "2k",
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 2
    assert "is not a kind of file that can be read; give .txt, .md, .jsonl, .parquet or a folder" in ended.err
