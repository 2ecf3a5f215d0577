"""A search from end to end: one result whatever computes it, all of it on file, and a second stage on top."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_search import SIZES, WINDOW, Formula, InProcessPool, Notes, search_in_process, settings
from transformers import AutoModelForCausalLM

from longrope.data.samples import Sample, SampleSet
from longrope.exceptions import RunFailedError, SettingsError
from longrope.export.huggingface import export_folder
from longrope.model.architectures import ARCHITECTURES
from longrope.model.load import ModelSource
from longrope.model.rope_config import ModelRope
from longrope.model.score import score_tokens
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear, ntk, yarn
from longrope.rope.policy import FixedFactors, load_factors
from longrope.runs.journal import Journal, read_journal
from longrope.runs.model import open_model
from longrope.runs.progress import Progress
from longrope.search.candidate import Candidate
from longrope.search.evaluation import Task
from longrope.search.paper import PaperSearch, PaperSettings
from longrope.search.run import open_samples
from longrope.search.scorer import Scorer
from longrope.search.search import SearchReport, search
from longrope.search.settings import DataSettings, SearchSettings
from longrope.search.solve import Plan, Problem, Solution, solve
from longrope.search.space import SearchSpace
from longrope.workers.settings import ExecutionSettings


@pytest.fixture(scope="module")
def finished(model_folder: Path, documents_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchReport:
    """A search that nothing disturbed."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    return search_in_process(settings(model_folder, documents_file, output))[0]


def record(report: SearchReport) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((report.folder / "factors.json").read_text())
    return value


# --- One result whatever computes it ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray with room for two evaluators, which import what stands beside this file."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": ":".join(sys.path)}},
    )
    yield
    ray.shutdown()


@pytest.mark.parametrize(("executor", "workers"), [("local", 2), ("ray", 1), ("ray", 2)])
def test_the_same_seed_gives_the_same_file(
    executor: str,
    workers: int,
    finished: SearchReport,
    model_folder: Path,
    documents_file: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if executor == "ray":
        request.getfixturevalue("cluster")
    execution = ExecutionSettings(executor=executor, workers=workers)
    report = search(settings(model_folder, documents_file, tmp_path / "run", execution=execution))
    assert (report.folder / "factors.json").read_bytes() == (finished.folder / "factors.json").read_bytes()
    about = json.loads((report.folder / "run.json").read_text())
    assert (about["executor"], about["workers"]) == (executor, workers)
    assert about["evaluations"] == len(read_journal(report.folder / "evaluations.jsonl")[1])


def test_another_seed_gives_another_search(
    finished: SearchReport, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    report, _ = search_in_process(settings(model_folder, documents_file, tmp_path / "run", seed=1))
    assert report.solution.scores != finished.solution.scores
    assert (
        record(report)["provenance"]["data"]["drawn"]["search"]
        != record(finished)["provenance"]["data"]["drawn"]["search"]
    )


def test_the_needle_objective_counts_the_answer_alone(model_folder: Path, documents_file: Path, tmp_path: Path) -> None:
    def found(objective: str) -> SearchReport:
        data = DataSettings(source=str(documents_file), samples=2, held_out=2, objective=objective)
        given = settings(model_folder, documents_file, tmp_path / objective, target_length=512, data=data)
        return search_in_process(given)[0]

    needle, plain = found("needle"), found("perplexity")
    _, events = read_journal(needle.folder / "evaluations.jsonl")
    assert {event["tokens"] for event in events} <= set(range(7, 15))  # of a space and seven digits
    assert all(sum(event["nll"]) == event["nll"][-1] for event in events)
    assert record(needle)["provenance"]["data"]["objective"] == "needle"
    assert [column for column in needle.table if "held-out" in column] == ["held-out 512"]
    assert len([column for column in plain.table if "held-out" in column]) > 1
    data = DataSettings(source=str(documents_file), samples=2, held_out=2, objective="needle")
    short = settings(model_folder, documents_file, tmp_path / "short", data=data)
    with pytest.raises(SettingsError, match="length 128 has no room for the text that is hidden; give at least"):
        search(short)


@pytest.mark.parametrize("last", [20, 300])  # within the last block of scores, and over its edge
def test_only_the_last_tokens_count_where_that_is_asked_for(
    last: int, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    def given(last: int) -> SearchSettings:
        data = DataSettings(source=str(documents_file), samples=2, held_out=2, last=last)
        return settings(model_folder, documents_file, tmp_path / str(last), target_length=512, data=data)

    progress = Notes()
    report, _ = search_in_process(given(last), progress=progress)
    assert f"2 held-out samples of 512 tokens, scored by the perplexity of the last {last} tokens" in "".join(
        progress.lines
    )
    _, events = read_journal(report.folder / "evaluations.jsonl")
    assert {event["tokens"] for event in events} == {last}
    model = open_model(str(model_folder), given(last).execution)
    drawn = open_samples(given(last).data, model.tokenizer, 512, 0, Progress())
    loaded = model.source.load_model()
    nll = [score_tokens(loaded, sample.tokens, report.factors)[-last:] for sample in drawn.search]
    assert min(report.solution.scores) == pytest.approx(math.exp(np.concatenate(nll).mean()), rel=1e-5)
    assert record(report)["provenance"]["data"]["last"] == last
    assert [column for column in report.table if "held-out" in column] == ["held-out 512"]
    with pytest.raises(SettingsError, match="last is 512, but a text of 512 tokens has 511 that are predicted"):
        search(given(512))


# --- What is on file ---


def test_the_factors_are_those_of_the_best_candidate(finished: SearchReport) -> None:
    loaded = load_factors(finished.folder / "factors.json")
    assert isinstance(loaded, RopeFactors)
    assert loaded == finished.factors
    assert Candidate.from_factors(loaded) == finished.solution.best
    assert (loaded.rope_theta, loaded.rotary_dim, loaded.original_length, loaded.target_length) == (1e4, 16, 64, 128)
    assert finished.solution.result().search == min(finished.solution.scores)
    assert finished.solution.convergence[-1] == (len(finished.solution.scores), min(finished.solution.scores))


def test_the_file_says_all_that_is_needed_to_repeat_the_search(
    finished: SearchReport, model_folder: Path, documents_file: Path
) -> None:
    content = record(finished)
    assert list(content) == [
        "schema_version", "kind", "lambdas", "n_hat", "attention_factor", "rope_theta", "rotary_dim",
        "original_length", "target_length", "provenance",
    ]  # fmt: skip
    provenance = content["provenance"]
    assert provenance["seed"] == 0
    assert provenance["model"]["name"] == str(model_folder)
    assert re.fullmatch("[0-9a-f]{16}", provenance["model"]["fingerprint"])
    data = provenance["data"]
    assert data["source"] == str(documents_file)
    assert (data["samples"], data["held_out"]) == (2, 3)
    assert (len(data["drawn"]["search"]), len(data["drawn"]["held_out"])) == (2, 3)
    assert all(
        re.fullmatch("[0-9a-f]{16}", each["digest"]) for each in [*data["drawn"]["search"], *data["drawn"]["held_out"]]
    )
    sizes = {**SIZES, "lambda_max": 2.5}
    chosen = provenance["settings"]
    assert {name: chosen[name] for name in sizes} == sizes
    assert chosen["n_hat_choices"] == [0, 4, 16]
    assert (chosen["attention_factor_rule"], chosen["dtype"], chosen["threads_per_worker"]) == ("auto", "float32", 1)
    assert provenance["versions"].keys() >= {"longrope", "python", "torch", "transformers"}
    results = provenance["results"]
    assert results["evaluations"] == len(finished.solution.scores)
    names = {row["method"] for row in results["methods"]}
    assert names >= {"none", "pi", "ntk", "dynamic-ntk", "yarn", "longrope"}
    assert results["best_without_n_hat"]["n_hat"] == 0


def test_the_file_holds_no_times(finished: SearchReport) -> None:
    text = (finished.folder / "factors.json").read_text()
    assert not re.search(r"seconds|finished|date|\d{4}-\d{2}-\d{2}", text)


def test_the_table_on_disk_is_the_one_in_the_report(finished: SearchReport) -> None:
    frame = pd.read_csv(finished.folder / "results.csv")
    pd.testing.assert_frame_equal(frame, finished.table, check_exact=False, rtol=1e-12)
    rows = record(finished)["provenance"]["results"]["methods"]
    assert frame["held-out 128"].tolist() == pytest.approx([row["held_out_perplexity"]["128"] for row in rows])
    assert frame["search 128"].tolist() == pytest.approx([row["search_perplexity"] for row in rows])


def test_no_pair_is_in_the_journal_twice(finished: SearchReport) -> None:
    events = read_journal(finished.folder / "evaluations.jsonl")[1]
    pairs = [(Candidate.from_dict(event["candidate"]), event["sample"]) for event in events]
    assert len(set(pairs)) == len(pairs)


def test_n_hat_can_be_ruled_out(model_folder: Path, documents_file: Path, tmp_path: Path) -> None:
    report, pool = search_in_process(
        settings(model_folder, documents_file, tmp_path / "run", algorithm={"n_hat": (0,)})
    )
    assert {task.candidate.n_hat for task in pool.asked} == {0}
    assert report.factors.n_hat == 0
    assert report.solution.best_without_n_hat == report.solution.best
    assert [row.name for row in report.solution.results].count("longrope") == 1
    assert "longrope, n_hat = 0" not in [row.name for row in report.solution.results]


def test_a_search_needs_no_held_out_documents(model_folder: Path, documents_file: Path, tmp_path: Path) -> None:
    data = DataSettings(source=str(documents_file), samples=2, held_out=0)
    report, pool = search_in_process(settings(model_folder, documents_file, tmp_path / "run", data=data))
    assert report.yarn is None
    assert report.table["held-out 128"].isna().all()
    assert len({task.sample for task in pool.asked}) == 2
    assert {row["held_out_perplexity"]["128"] for row in record(report)["provenance"]["results"]["methods"]} == {None}


def test_the_comparison_is_with_the_better_yarn(finished: SearchReport) -> None:
    assert finished.yarn is not None
    yarn_row, difference = finished.yarn
    rows = [row for row in finished.solution.results if row.name == "yarn"]
    assert yarn_row.held_out(128) == min(row.held_out(128) for row in rows)
    pairs = zip(finished.solution.result().losses[128], yarn_row.losses[128], strict=True)
    assert difference.mean == pytest.approx(sum(a / n - b / m for (a, n), (b, m) in pairs) / 3)


# --- Candidates that cannot be scored ---


def test_a_candidate_that_fails_is_recorded_and_not_selected(
    finished: SearchReport, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    winner = finished.solution.best
    sample = record(finished)["provenance"]["data"]["drawn"]["search"][1]["digest"]
    report, _ = search_in_process(
        settings(model_folder, documents_file, tmp_path / "run"),
        lambda task: "out of memory" if (task.candidate, task.sample) == (winner, sample) else None,
    )
    assert report.solution.best != winner
    assert report.solution.scores.count(math.inf) == 1
    failures = [event for event in read_journal(report.folder / "evaluations.jsonl")[1] if event["kind"] == "failure"]
    assert failures == [{"kind": "failure", "candidate": winner.to_dict(), "sample": sample, "reason": "out of memory"}]


def test_a_first_candidate_that_fails_alone_does_not_end_the_search(
    finished: SearchReport, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    asked: list[Task] = []

    def fails(task: Task) -> str | None:
        asked.append(task)
        return "overflow" if task.candidate == asked[0].candidate else None

    report, _ = search_in_process(settings(model_folder, documents_file, tmp_path / "run"), fails)
    assert report.solution.scores[0] == math.inf
    assert report.solution.best != asked[0].candidate


def test_a_search_whose_first_candidates_all_fail_is_not_begun_and_can_be_tried_again(
    finished: SearchReport, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    given = settings(model_folder, documents_file, tmp_path / "run")
    asked: list[Task] = []

    def fails(task: Task) -> str:
        asked.append(task)
        return "out of memory"

    with pytest.raises(RunFailedError, match=r"^the first 3 evaluations failed, .*: out of memory$"):
        search_in_process(given, fails)
    assert len(asked) == 3
    assert not (tmp_path / "run" / "factors.json").exists()
    report, _ = search_in_process(replace(given, resume=True))
    assert (report.folder / "factors.json").read_bytes() == (finished.folder / "factors.json").read_bytes()


def test_a_search_in_which_every_candidate_fails_ends_with_the_reason(
    model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    asked: list[Task] = []

    def fails(task: Task) -> str | None:
        asked.append(task)
        return "out of memory" if len(asked) > 1 else None

    given = settings(model_folder, documents_file, tmp_path / "run")
    with pytest.raises(RunFailedError, match=r"^no candidate could be scored: out of memory$"):
        search_in_process(given, fails)
    assert not (tmp_path / "run" / "factors.json").exists()
    assert len(asked) == 8 * 2  # the first round, and no other


def test_a_baseline_that_fails_does_not_end_the_search(
    model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    plain = Candidate((1.0,) * 8, 0, 1.0)
    report, _ = search_in_process(
        settings(model_folder, documents_file, tmp_path / "run"),
        lambda task: "not finite" if task.candidate == plain else None,
    )
    none = report.solution.result("none")
    assert none.attention_factor > 1  # the better row is the one that could be scored
    row = record(report)["provenance"]["results"]["methods"][0]
    assert (row["method"], row["search_perplexity"], row["held_out_perplexity"]) == ("none", None, {"128": None})


# --- The search itself, without a model ---

PLAIN = RopeFactors.identity(10000.0, 16, WINDOW)
SAMPLES = SampleSet(
    tuple(Sample(f"search {i}", [i] * 256) for i in range(2)),
    tuple(Sample(f"held out {i}", [9 + i] * 256) for i in (0, 1)),
)


def solved(folder: Path, loss: Any, sizes: PaperSettings, n_hat: tuple[int, ...] = (0, 8)) -> tuple[Solution, list]:
    rope = ModelRope(ARCHITECTURES["llama"], FixedFactors(PLAIN), WINDOW)
    space = SearchSpace(pairs=8, lambda_min=1.0, lambda_max=5.0, n_hat_choices=n_hat)
    seeds = tuple(Candidate.from_factors(method(PLAIN, 256)) for method in (linear, ntk))
    problem = Problem(rope, 256, space, seeds, (), SAMPLES, (256,))
    pool = InProcessPool(Formula(loss))
    with Journal.create(folder / "journal", {}) as journal:
        scorer = Scorer(pool, journal, Progress())
        return solve(problem, PaperSearch(space, seeds, sizes, 0), scorer, Plan(sizes.most), Progress()), pool.asked


def test_the_search_improves_on_its_seeds_and_never_looks_at_held_out_documents(tmp_path: Path) -> None:
    def loss(candidate: Candidate, sample: str) -> float:
        return 1 + sum((value - 3) ** 2 for value in candidate.lambdas) / 100 + candidate.n_hat / 80

    sizes = PaperSettings(population=16, mutations=8, crossovers=8, iterations=10, parents=8)
    solution, asked = solved(tmp_path, loss, sizes)
    assert solution.best.n_hat == 0
    assert min(solution.scores) < min(solution.scores[:2])
    bests = [best for _, best in solution.convergence]
    assert bests == sorted(bests, reverse=True)
    assert [count for count, _ in solution.convergence] == [16 * (step + 1) for step in range(11)]
    assert solution.evaluations == sizes.most == 16 + 10 * 16
    held_out = {sample.digest for sample in SAMPLES.held_out}
    searching = asked[: 2 * solution.evaluations]
    assert not [task for task in searching if task.sample in held_out]
    assert {task.candidate for task in asked if task.sample in held_out} == {solution.best}


def test_the_best_with_n_hat_zero_is_compared_as_well(tmp_path: Path) -> None:
    sizes = PaperSettings(population=20, mutations=2, crossovers=2, iterations=1, parents=8)
    solution, _ = solved(tmp_path, lambda candidate, sample: 2.0 - candidate.n_hat / 8, sizes)
    assert (solution.best.n_hat, solution.best_without_n_hat.n_hat) == (8, 0)
    assert [(row.name, row.search) for row in solution.results] == [
        ("longrope", pytest.approx(math.e)),
        ("longrope, n_hat = 0", pytest.approx(math.e**2)),
    ]


def test_evaluations_can_be_limited(tmp_path: Path) -> None:
    sizes = PaperSettings(population=20, iterations=5, max_evaluations=7)
    solution, asked = solved(tmp_path, lambda candidate, sample: 1.0, sizes)
    assert sizes.most == 7
    assert solution.evaluations == 7
    assert len({task.candidate for task in asked}) == 7


# --- The second stage ---


@pytest.fixture(scope="module")
def extended(finished: SearchReport, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that plain transformers loads, with a window of 128."""
    folder = tmp_path_factory.mktemp("models") / "extended"
    export_folder(ModelSource(str(model_folder)), finished.factors, folder, without_n_hat=True)
    return folder


def test_a_second_stage_starts_from_the_present_factors_and_from_yarn_at_once(
    extended: Path, documents_file: Path, tmp_path: Path
) -> None:
    given = settings(extended, documents_file, tmp_path / "run", target_length=256)
    report, pool = search_in_process(given)
    rope = open_model(str(extended), given.execution).rope
    present = rope.present
    assert present.target_length == 128
    assert max(present.lambdas) > 1

    factor = report.factors.attention_factor
    assert factor == present.attention_factor  # the model may have been trained with it
    seeds = [Candidate(method(present, 256).lambdas, 0, factor) for method in (linear, ntk, yarn)]
    seeds += [Candidate(yarn(rope.identity(), length).lambdas, 0, factor) for length in (256, 320)]
    asked = list(dict.fromkeys(task.candidate for task in pool.asked))[: len(seeds)]
    for seed, candidate in zip(seeds, asked, strict=True):
        assert candidate.lambdas == pytest.approx(seed.lambdas, abs=0.005001)
        assert (candidate.n_hat, candidate.attention_factor) == (0, factor)
    assert (report.factors.original_length, report.factors.target_length) == (64, 256)
    assert report.solution.result().search <= min(report.solution.scores[:5])
    assert record(report)["provenance"]["present"]["window"] == 128
    # Who has other seeds searches otherwise: a journal from before there were these is not gone on with.
    assert record(report)["provenance"]["settings"]["beyond"] == 1.25


def test_none_is_the_folder_as_plain_transformers_computes_it(
    extended: Path, documents_file: Path, tmp_path: Path
) -> None:
    given = settings(extended, documents_file, tmp_path / "run", target_length=256)
    report, _ = search_in_process(given)
    none = next(row for row in report.solution.results if row.name == "none")  # at its own attention factor

    model = AutoModelForCausalLM.from_pretrained(extended).eval()
    samples = open_samples(given.data, open_model(str(extended), given.execution).tokenizer, 256, 0, Progress())

    def loss(sample: Sample) -> float:
        ids = torch.tensor(sample.tokens, dtype=torch.long)[None]
        with torch.no_grad():
            return float(model(ids, labels=ids).loss)

    assert none.search == pytest.approx(math.exp(sum(map(loss, samples.search)) / 2), rel=1e-5)
    assert none.held_out(256) == pytest.approx(math.exp(sum(map(loss, samples.held_out)) / 3), rel=1e-5)


def test_a_second_stage_must_be_longer_than_the_first(extended: Path, documents_file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="target length 128 is not longer than the present window of 128"):
        search_in_process(settings(extended, documents_file, tmp_path / "run", target_length=128))
    assert not (tmp_path / "run").exists()
