"""Searches from coarse to fine on a model: what is on file, gone on with, raced, watched and ended early."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from tiny_search import Notes, coarse_to_fine, eager_races, search_in_process, settings

from longrope.exceptions import OtherRunError
from longrope.export.recipe import recipe
from longrope.rope.policy import FactorSchedule, Window, load_factors
from longrope.runs.journal import read_journal
from longrope.search.candidate import Candidate
from longrope.search.coarse_to_fine import CoarseToFine
from longrope.search.levels import FIRST_RAMPS
from longrope.search.racing import RULE
from longrope.search.scorer import Scorer
from longrope.search.search import SearchReport
from longrope.search.settings import ALGORITHMS, DataSettings, SearchSettings
from longrope.workers.settings import ExecutionSettings

JOURNAL, FACTORS = "evaluations.jsonl", "factors.json"
Given = Callable[..., SearchSettings]
every = pytest.mark.parametrize("name", ALGORITHMS[1:])


@pytest.fixture(scope="module")
def given(model_folder: Path, documents_file: Path) -> Given:
    """A search of 15 candidates on four samples."""

    def make(
        output: Path, name: str = "genetic", algorithm: dict[str, Any] | None = None, **more: Any
    ) -> SearchSettings:
        data = DataSettings(source=str(documents_file), samples=4, held_out=3)
        chosen = coarse_to_fine(name, **(algorithm or {}))
        return settings(model_folder, documents_file, output, 128, chosen, **{"data": data, **more})

    return make


def results(report: SearchReport) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report.folder / FACTORS).read_text())["provenance"]["results"]
    return found


def cut(report: SearchReport, folder: Path, share: float) -> int:
    """The first lines of the run's journal, in another folder; how many are missing there."""
    lines = (report.folder / JOURNAL).read_bytes().splitlines(keepends=True)
    kept = round(share * len(lines))
    folder.mkdir()
    (folder / JOURNAL).write_bytes(b"".join(lines[:kept]))
    return len(lines) - kept


@every
def test_a_search_is_written_down_and_gone_on_with(name: str, given: Given, tmp_path: Path) -> None:
    searched = {"attention_factor": "search"}
    report, _ = search_in_process(given(tmp_path / "run", name, searched))
    written = load_factors(report.folder / FACTORS)
    assert written.provenance["method"] == f"longrope search, algorithm {name}"
    chosen = written.provenance["settings"]
    assert (chosen["algorithm"], chosen["population"], chosen["max_evaluations"]) == (name, 4, 15)
    assert (chosen["attention_span"], chosen["attention_factor_rule"]) == (1.25, "search")
    assert (chosen.get("first_ramps"), chosen["racing"]) == (FIRST_RAMPS if name == "genetic" else None, RULE)
    assert "mutations" not in chosen
    assert results(report)["evaluations"] == len(report.solution.scores) == 15
    assert Candidate.from_factors(written) == report.solution.best
    assert report.solution.result().search == min(report.solution.scores)
    for share in (0.5, 1.0):
        missing = cut(report, tmp_path / f"{share}", share)
        again, pool = search_in_process(given(tmp_path / f"{share}", name, searched, resume=True))
        assert len(pool.asked) == missing
        assert (again.folder / FACTORS).read_bytes() == (report.folder / FACTORS).read_bytes()


def test_a_run_that_began_with_other_ramps_is_not_gone_on_with(given: Given, tmp_path: Path) -> None:
    report, _ = search_in_process(given(tmp_path / "run"))
    cut(report, tmp_path / "old", 0.5)
    journal = tmp_path / "old" / JOURNAL
    header, *events = journal.read_text().splitlines(keepends=True)
    before = json.loads(header)
    assert before["settings"].pop("first_ramps") == FIRST_RAMPS
    journal.write_text("".join([json.dumps(before) + "\n", *events]))
    old = journal.read_bytes()
    with pytest.raises(OtherRunError, match="first_ramps"):
        search_in_process(given(tmp_path / "old", resume=True))
    assert journal.read_bytes() == old


@pytest.mark.parametrize("racing", [True, False])
def test_the_card_of_an_exported_model_says_how_to_search_again(racing: bool, given: Given, tmp_path: Path) -> None:
    chosen = {"racing": racing, "patience": 9, "attention_factor": "search"}
    report, _ = search_in_process(given(tmp_path / "run", "genetic", chosen))
    factors = load_factors(report.folder / FACTORS)
    [command] = [part for part in recipe(FactorSchedule((Window(128, factors),))) if part.startswith("To search again")]
    for words in (
        "--algorithm genetic",
        "--population 4",
        "--max-evaluations 15",
        "--patience 9",
        "--attention-factor search",
        "--racing" if racing else "--no-racing",
    ):
        assert words in command


# --- Racing ---


@pytest.mark.parametrize(("racing", "told"), [(True, True), (False, False)])
def test_evaluators_that_wait_are_told_of(
    racing: bool, told: bool, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round has 4 candidates."""
    notes = Notes()
    monkeypatch.setattr(Scorer, "workers", property(lambda scorer: 6), raising=False)
    search_in_process(given(tmp_path / "run", "genetic", {"racing": racing}), progress=notes)
    said = [line for line in notes.lines if "2 of them wait; --no-racing would have work for 16" in line]
    assert len(said) == told


@pytest.fixture
def raced(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchReport:
    """A search in batches in which candidates are dropped."""
    eager_races(monkeypatch)
    return search_in_process(given(tmp_path / "raced", execution=ExecutionSettings(workers=1, batch=4)))[0]


def test_a_race_is_told_of_and_resumed_to_the_same_result(raced: SearchReport, given: Given, tmp_path: Path) -> None:
    course = raced.solution.course
    on_file = {(str(event["candidate"]), event["sample"]) for event in read_journal(raced.folder / JOURNAL)[1][1:]}
    drawn = raced.factors.provenance["data"]["drawn"]["search"]
    asked = list(dict.fromkeys(candidate for candidate, _ in on_file))
    assert course.saved_tokens > 0
    unscored = sum((candidate, each["digest"]) not in on_file for candidate in asked for each in drawn)
    assert course.saved_tokens == 128 * unscored
    digests = [each["digest"] for each in drawn]
    seen = [{sample for of, sample in on_file if of == candidate} & set(digests) for candidate in asked]
    assert any(each != set(digests[: len(each)]) for each in seen), "no race began with another sample than the first"
    assert course.scored_tokens + course.saved_tokens == 15 * 4 * 128
    assert course.saved_share == course.saved_tokens / (15 * 4 * 128)
    recorded = results(raced)
    assert (recorded["scored_tokens"], recorded["saved_tokens"]) == (course.scored_tokens, course.saved_tokens)
    assert raced.solution.result().search == min(raced.solution.scores)
    for share in (0.6, 1.0):
        cut(raced, tmp_path / f"{share}", share)
        again, pool = search_in_process(given(tmp_path / f"{share}", resume=True))
        assert (again.folder / FACTORS).read_bytes() == (raced.folder / FACTORS).read_bytes()
        assert bool(pool.asked) == (share < 1)


def test_the_algorithm_is_told_who_was_dropped(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates of theirs may be low by chance, and shall not be the best for that."""
    dropped: set[Candidate] = set()
    tell = CoarseToFine.tell

    def noted(self: CoarseToFine, scores: dict[Candidate, float], lost: Collection[Candidate] = ()) -> None:
        dropped.update(lost)
        tell(self, scores, lost)

    monkeypatch.setattr(CoarseToFine, "tell", noted)
    eager_races(monkeypatch)
    report, pool = search_in_process(given(tmp_path / "run"))
    drawn = {each["digest"] for each in report.factors.provenance["data"]["drawn"]["search"]}
    scored = Counter(task.candidate for task in pool.asked if task.sample in drawn)
    assert dropped == {candidate for candidate, samples in scored.items() if samples < 4} != set()


def test_without_racing_all_is_scored(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager_races(monkeypatch)
    report, _ = search_in_process(given(tmp_path / "run", algorithm={"racing": False}))
    assert "saved_tokens" not in results(report)
    assert "racing" not in report.factors.provenance["settings"]


# --- Ends ---


def test_a_search_out_of_patience_says_so_and_ends_there_again(given: Given, tmp_path: Path) -> None:
    limits = {"patience": 1, "max_evaluations": 100}
    report, _ = search_in_process(given(tmp_path / "run", algorithm=limits))
    reason = "nothing clearly better was found in 1 rounds"
    assert results(report)["stopped"] == report.solution.course.stopped == reason
    assert report.solution.evaluations < 100
    events = [event for event in read_journal(report.folder / JOURNAL)[1] if event["kind"] == "stop"]
    assert events == [{"kind": "stop", "round": len(report.solution.convergence), "reason": reason}]
    journal = (report.folder / JOURNAL).read_bytes()
    again, pool = search_in_process(given(tmp_path / "run", algorithm=limits, resume=True))
    assert pool.asked == []
    assert again.solution == report.solution
    assert (report.folder / JOURNAL).read_bytes() == journal


def test_a_search_whose_time_is_spent_ends_at_the_same_round_when_it_is_resumed(given: Given, tmp_path: Path) -> None:
    """The time is that in the journal, whichever process spent it."""
    limits = {"max_gpu_hours": 1e-12}
    report, _ = search_in_process(given(tmp_path / "run", algorithm=limits))
    assert len(report.solution.convergence) == 1
    assert "GPU-hours are spent, of 1e-12" in results(report)["stopped"]
    again, pool = search_in_process(given(tmp_path / "run", algorithm=limits, resume=True))
    assert (pool.asked, again.solution) == ([], report.solution)


# --- The watch ---


def test_looks_at_held_out_documents_are_told_and_choose_nothing(given: Given, tmp_path: Path) -> None:
    notes = Notes()
    blind, _ = search_in_process(given(tmp_path / "blind", algorithm={"watch": 0}))
    watched, _ = search_in_process(given(tmp_path / "watched", algorithm={"watch": 1}), progress=notes)
    assert watched.factors.lambdas == blind.factors.lambdas
    assert watched.solution.scores == blind.solution.scores
    assert "looks" not in results(blind)
    looks = results(watched)["looks"]
    bests = [score for _, score in watched.solution.convergence]
    assert [look["search"] for look in looks] == sorted(set(bests), reverse=True)
    assert looks[-1]["held_out"] == pytest.approx(watched.solution.result().held_out(128))
    assert len([line for line in notes.lines if line.startswith("after ")]) == len(looks)
