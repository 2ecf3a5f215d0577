"""Readjustment: short windows of an extended model get factors of their own, in one schedule with the long ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_search import SIZES, Fails, InProcessPool, Notes, coarse_to_fine, in_process
from transformers import AutoModelForCausalLM

from longrope.exceptions import FactorsError, RunExistsError, SettingsError
from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear, yarn
from longrope.rope.policy import FactorSchedule, Window, load_factors
from longrope.runs.journal import read_journal
from longrope.runs.progress import Progress
from longrope.search.candidate import Candidate
from longrope.search.readjust import ReadjustReport, ReadjustSettings, readjust
from longrope.search.settings import AlgorithmSettings, DataSettings
from longrope.workers.settings import ExecutionSettings

PLAIN = RopeFactors.identity(10000.0, 16, 64)
LONG = yarn(PLAIN, 1024)  # lambdas from 1 to 16


@pytest.fixture(scope="module")
def extended(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder made by `longrope apply`: plain up to 64 tokens, long factors up to 1024."""
    folder = tmp_path_factory.mktemp("models") / "extended"
    export_folder(ModelSource(str(model_folder)), LONG, folder)
    return folder


@pytest.fixture(scope="module")
def given(extended: Path, documents_file: Path) -> Callable[..., ReadjustSettings]:
    def make(output: Path, algorithm: dict[str, Any] | None = None, **more: Any) -> ReadjustSettings:
        sizes = {**SIZES, "n_hat": (0, 4)}
        return ReadjustSettings(
            **{
                "model": str(extended),
                "output": str(output),
                "windows": (48, 32),
                "data": DataSettings(source=str(documents_file), samples=2, held_out=3),
                "execution": ExecutionSettings(workers=1),
                "algorithm": AlgorithmSettings(**{"attention_factor": "present", **sizes, **(algorithm or {})}),
                **more,
            }
        )

    return make


def run(
    settings: ReadjustSettings, fails: Fails = lambda task: None, progress: Progress | None = None
) -> tuple[ReadjustReport, list[InProcessPool]]:
    with in_process(fails) as pools:
        return readjust(settings, progress), pools


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def finished(
    given: Callable[..., ReadjustSettings], notes: Notes, tmp_path_factory: pytest.TempPathFactory
) -> ReadjustReport:
    return run(given(tmp_path_factory.mktemp("runs") / "finished"), progress=notes)[0]


def test_the_schedule_has_the_new_windows_beside_the_present_ones(finished: ReadjustReport) -> None:
    schedule = load_factors(finished.folder / "factors.json")
    assert isinstance(schedule, FactorSchedule)
    assert schedule == finished.schedule
    assert [window.max_length for window in schedule.windows] == [32, 48, 64, 1024]
    assert schedule.factors_for(1024).lambdas == LONG.lambdas
    assert schedule.factors_for(64).lambdas == PLAIN.lambdas
    for report, length in zip(finished.windows, (32, 48), strict=True):
        assert report.factors == schedule.factors_for(length)
        assert (report.factors.original_length, report.factors.target_length) == (64, length)
        assert load_factors(finished.folder / f"window-{length}" / "factors.json") == report.factors


def test_the_attention_factor_is_that_of_the_long_factors(finished: ReadjustReport) -> None:
    assert {report.factors.attention_factor for report in finished.windows} == {LONG.attention_factor}


def test_the_largest_lambda_is_reduced_and_the_output_says_so(finished: ReadjustReport, notes: Notes) -> None:
    for report in finished.windows:
        assert report.factors.provenance["settings"]["lambda_max"] == 8.0
        assert "window 32: lambda up to 8 (the long factors reach 16)" in notes.lines


def test_plain_rope_and_the_long_factors_are_where_each_search_starts(finished: ReadjustReport) -> None:
    for length in (32, 48):
        events = read_journal(finished.folder / f"window-{length}" / "evaluations.jsonl")[1]
        asked = list(dict.fromkeys(Candidate.from_dict(event["candidate"]) for event in events))
        assert asked[0] == Candidate(PLAIN.lambdas, 0, LONG.attention_factor)
        assert asked[1].lambdas == pytest.approx(LONG.lambdas, abs=0.005001)


def test_the_result_is_no_worse_than_where_it_started(finished: ReadjustReport) -> None:
    for report in finished.windows:
        assert report.solution.result().search == min(report.solution.scores)
        assert min(report.solution.scores) <= min(report.solution.scores[:2])


def test_each_window_is_compared_with_the_long_factors(finished: ReadjustReport) -> None:
    for report, length in zip(finished.windows, (32, 48), strict=True):
        assert {"identity", "present", "long", "longrope"} <= set(report.table["method"])
        assert list(report.table.columns)[2:] == [f"search {length}", f"held-out {length}"]
        assert report.against_long is not None
        assert report.against_long.documents == 3
        per_token = report.solution.result().losses[length], report.solution.result("long").losses[length]
        pairs = zip(*per_token, strict=True)
        assert report.against_long.mean == pytest.approx(sum(a / n - b / m for (a, n), (b, m) in pairs) / 3)
    frame = pd.read_csv(finished.folder / "results.csv")
    assert sorted(set(frame["window"])) == [32, 48]


def test_the_schedule_can_be_applied_and_loaded(
    finished: ReadjustReport, model_folder: Path, extended: Path, tmp_path: Path
) -> None:
    for name, model in (("plain", model_folder), ("extended", extended)):
        exported = export_folder(ModelSource(str(model)), finished.schedule, tmp_path / name, without_n_hat=True)
        loaded = AutoModelForCausalLM.from_pretrained(exported.folder)
        rope = read_rope(loaded.config, exported.folder)
        assert [window.max_length for window in rope.schedule().windows] == [32, 48, 64, 1024]
        assert rope.window == 1024
        assert rope.present.lambdas == LONG.lambdas


def test_a_folder_that_was_readjusted_can_be_readjusted_again(
    given: Callable[..., ReadjustSettings], finished: ReadjustReport, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export_folder(ModelSource(str(model_folder)), finished.schedule, folder, without_n_hat=True)
    flat = {"n_hat": (0,)}
    report, _ = run(given(tmp_path / "run", model=str(folder), windows=(48, 128), algorithm=flat))
    assert [window.max_length for window in report.schedule.windows] == [32, 48, 64, 128, 1024]
    # A window that is there already is among the seeds, so it is never made worse on the same texts.
    present = report.windows[0].solution.result("present")
    assert report.windows[0].solution.result().search <= present.search
    # 128 tokens lie between the windows of 64 and 1024: its present factors are the long ones.
    rows = report.windows[1].table.set_index("method")["search 128"]
    assert rows["present"].tolist() == rows["long"].tolist()


def test_factors_in_a_file_are_as_good_as_in_the_model(
    given: Callable[..., ReadjustSettings], finished: ReadjustReport, model_folder: Path, tmp_path: Path
) -> None:
    LONG.save(tmp_path / "long.json")
    report, _ = run(given(tmp_path / "run", model=str(model_folder), factors=str(tmp_path / "long.json")))
    assert report.schedule == finished.schedule


def test_the_present_factors_of_a_window_are_those_of_the_schedule_given(
    given: Callable[..., ReadjustSettings], model_folder: Path, tmp_path: Path
) -> None:
    short = linear(PLAIN, 96).replace(target_length=32)
    FactorSchedule((Window(32, short), Window(64, PLAIN), Window(1024, LONG))).save(tmp_path / "schedule.json")
    given_schedule = given(
        tmp_path / "run", model=str(model_folder), factors=str(tmp_path / "schedule.json"), windows=(32,)
    )
    report, pools = run(given_schedule)
    assert Candidate.from_factors(short) in {task.candidate for task in pools[0].asked}
    assert Candidate(short.lambdas, 0, LONG.attention_factor) in {task.candidate for task in pools[0].asked}
    assert [window.max_length for window in report.schedule.windows] == [32, 64, 1024]


def test_a_readjustment_is_resumed_window_by_window(
    given: Callable[..., ReadjustSettings], finished: ReadjustReport, tmp_path: Path
) -> None:
    def lost(task: Any) -> None:
        asked.append(task)
        if len(asked) == 60:
            raise KeyboardInterrupt

    asked: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        run(given(tmp_path / "run"), lost)
    assert (tmp_path / "run" / "window-48").exists()
    with pytest.raises(RunExistsError, match="go on with it by --resume"):
        run(given(tmp_path / "run"))
    report, pools = run(given(tmp_path / "run", resume=True))
    assert (report.folder / "factors.json").read_bytes() == (finished.folder / "factors.json").read_bytes()
    journals = [read_journal(path)[1] for path in sorted(report.folder.glob("window-*/evaluations.jsonl"))]
    assert sum(map(len, journals)) == 59 + sum(len(pool.asked) for pool in pools)
    with pytest.raises(RunExistsError, match="seed: then 0, now 1"):
        run(given(tmp_path / "run", resume=True, seed=1))


def test_a_search_is_not_overwritten_by_a_readjustment(given: Callable[..., ReadjustSettings], tmp_path: Path) -> None:
    (tmp_path / "evaluations.jsonl").write_text("")
    with pytest.raises(RunExistsError, match=r"choose another$"):
        run(given(tmp_path, resume=True))


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((), "no windows given"),
        ((32, 1024), "window 1k is not shorter than the present window of 1k"),
        ((2048,), "window 2k is not shorter"),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    windows: tuple[int, ...], message: str, given: Callable[..., ReadjustSettings], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        run(given(tmp_path / "run", windows=windows))
    assert not (tmp_path / "run").exists()


def test_a_model_that_was_not_extended_is_refused(
    given: Callable[..., ReadjustSettings], model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="the model is not extended"):
        run(given(tmp_path / "run", model=str(model_folder)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 500000.0}, "rope_theta 500000, the model has 10000"),
        ({"rotary_dim": 32, "lambdas": (2.0,) * 16}, "rotary_dim 32, the model rotates 16"),
        ({"original_length": 128}, "pretrained on 128 tokens, this one was on 64"),
    ],
)
@pytest.mark.parametrize("as_schedule", [False, True])
def test_factors_of_another_model_are_refused(
    changes: dict[str, Any],
    message: str,
    as_schedule: bool,
    given: Callable[..., ReadjustSettings],
    model_folder: Path,
    tmp_path: Path,
) -> None:
    factors = LONG.replace(**changes)
    (FactorSchedule((Window(1024, factors),)) if as_schedule else factors).save(tmp_path / "other.json")
    with pytest.raises(FactorsError, match=message):
        run(given(tmp_path / "run", model=str(model_folder), factors=str(tmp_path / "other.json")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", ["present", "search"])
def test_a_readjustment_from_coarse_to_fine(rule: str, given: Callable[..., ReadjustSettings], tmp_path: Path) -> None:
    """It moves all pairs from the best seed on: nothing of short windows is known to grow with their length."""
    chosen = coarse_to_fine("cma", attention_factor=rule, max_evaluations=11)
    settings = given(tmp_path / "run", chosen, windows=(48,))
    report, _ = run(settings)
    [window] = report.windows
    provenance = window.factors.provenance
    assert provenance["method"] == "longrope readjust, algorithm cma"
    assert window.solution.evaluations == provenance["settings"]["max_evaluations"] == 11
    assert min(window.solution.scores) < min(window.solution.scores[:2])
    assert ("attention_span" in provenance["settings"]) == (rule == "search")
    assert max(window.factors.lambdas) <= 8
    again, pools = run(replace(settings, resume=True))
    assert (pools[0].asked, again.schedule) == ([], report.schedule)


def test_a_readjustment_is_told_apart_by_no_rule_of_ramps(
    given: Callable[..., ReadjustSettings], tmp_path: Path
) -> None:
    """It has none, so that one of another rule can be gone on with."""
    report, _ = run(given(tmp_path / "run", coarse_to_fine("genetic", max_evaluations=4), windows=(48,)))
    assert "first_ramps" not in report.windows[0].factors.provenance["settings"]


def test_each_window_says_how_it_came_about(finished: ReadjustReport) -> None:
    for report, length in zip(finished.windows, (32, 48), strict=True):
        file = finished.folder / f"window-{length}" / "factors.json"
        provenance = json.loads(file.read_text())["provenance"]
        assert provenance["method"] == "longrope readjust, algorithm paper"
        assert provenance["settings"]["window"] == length
        assert provenance["settings"]["long"]["lambdas"] == list(LONG.lambdas)
        assert provenance["results"]["evaluations"] == report.solution.evaluations
        assert json.loads((file.parent / "run.json").read_text())["evaluations"] > 0
