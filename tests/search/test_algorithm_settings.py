"""Settings of the algorithms: the paper stays as it is unless told otherwise, the others have ways of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_search import settings

from longrope.exceptions import SettingsError
from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.runs.model import open_model
from longrope.search.algorithms import make_algorithm
from longrope.search.coarse_to_fine import CoarseToFine, CoarseToFineSettings
from longrope.search.levels import Ramp
from longrope.search.paper import PaperSearch, PaperSettings
from longrope.search.racing import RULE
from longrope.search.search import ATTENTION_SPAN, algorithm_settings, plan_of, search_problem
from longrope.search.settings import ALGORITHMS, AlgorithmSettings
from longrope.search.solve import Plan, Problem
from longrope.search.stopping import Budget
from longrope.workers.settings import ExecutionSettings

FREE = ALGORITHMS[1:]
free = pytest.mark.parametrize("name", FREE)


@pytest.fixture(scope="module")
def scaled(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a window of 128 by YaRN's factors."""
    folder = tmp_path_factory.mktemp("models") / "scaled"
    export_folder(ModelSource(str(model_folder)), yarn(RopeFactors.identity(10000.0, 16, 64), 128), folder)
    return folder


def problem(model: Path, length: int = 256, **algorithm: Any) -> Problem:
    given = replace(settings(model, Path("texts"), Path("out"), length), algorithm=AlgorithmSettings(**algorithm))
    return search_problem(open_model(given.model, given.execution), given, samples=None)


def test_a_genetic_algorithm_searches_by_default() -> None:
    chosen = AlgorithmSettings()
    assert (chosen.algorithm, chosen.is_paper) == ("genetic", False)
    assert chosen.sizes(131072) == CoarseToFineSettings(population=8, max_evaluations=200, coarse=48)


# --- The paper's algorithm ---


def test_the_paper_stays_as_it_is(model_folder: Path) -> None:
    chosen = AlgorithmSettings(algorithm="paper")
    assert chosen.is_paper
    assert (chosen.races, chosen.watched_every, chosen.lambda_max_ratio) == (False, 0, 1.25)
    assert chosen.sizes(4096) == PaperSettings.paper(4096)
    assert chosen.budget(2.0) == Budget(None, None, 2.0)
    found = problem(model_folder, algorithm="paper")
    assert found.space.lambda_max == 1.25 * 256 / 64
    assert (found.space.attention_span, found.space.searches_attention) == (1.0, False)
    algorithm = make_algorithm("paper", found.space, found.seeds, found.ramp, chosen.sizes(256), 0)
    assert isinstance(algorithm, PaperSearch)
    model = open_model(str(model_folder), ExecutionSettings(device="cpu"))
    assert plan_of(chosen, chosen.sizes(256), model, ExecutionSettings(device="cpu")) == Plan(
        64 + 40 * 32, 32, False, 0, Budget(None, None, 0.0)
    )


def test_the_journal_of_the_paper_names_nothing_that_is_off() -> None:
    """So that journals from before there were other algorithms are gone on with."""
    chosen = AlgorithmSettings(algorithm="paper")
    recorded = algorithm_settings(chosen, chosen.sizes(4096), None)
    assert recorded == {"algorithm": "paper", **vars(PaperSettings.paper(4096))}
    chosen = AlgorithmSettings(algorithm="paper", racing=True, patience=4, max_gpu_hours=1.5)
    recorded = algorithm_settings(chosen, chosen.sizes(4096), None)
    assert {name: recorded[name] for name in ("racing", "patience", "max_gpu_hours")} == {
        "racing": RULE, "patience": 4, "max_gpu_hours": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("racing", [True, False])
def test_racing_and_watching_can_be_said(name: str, racing: bool) -> None:
    chosen = AlgorithmSettings(algorithm=name, racing=racing, watch=3)
    assert (chosen.races, chosen.watched_every) == (racing, 3)
    assert AlgorithmSettings(algorithm=name, watch=0).watched_every == 0


def test_the_attention_factor_is_not_searched_by_the_paper() -> None:
    with pytest.raises(SettingsError) as refused:
        AlgorithmSettings(algorithm="paper", attention_factor="search")
    assert str(refused.value) == (
        "the attention factor is not searched by algorithm 'paper'; give su or a number, or use genetic or cma"
    )


# --- From coarse to fine ---


@free
def test_the_others_race_and_watch_and_have_room(name: str, model_folder: Path) -> None:
    chosen = AlgorithmSettings(algorithm=name)
    assert (chosen.is_paper, chosen.races, chosen.watched_every, chosen.lambda_max_ratio) == (False, True, 10, 4.0)
    assert chosen.sizes(4096) == CoarseToFineSettings()
    given = AlgorithmSettings(algorithm=name, population=5, max_evaluations=33)
    assert given.sizes(4096) == CoarseToFineSettings(population=5, max_evaluations=33)
    found = problem(model_folder, algorithm=name)
    assert found.space.lambda_max == 4 * 256 / 64
    assert problem(model_folder, algorithm=name, lambda_max=7.0).space.lambda_max == 7.0
    assert isinstance(make_algorithm(name, found.space, found.seeds, found.ramp, chosen.sizes(256), 0), CoarseToFine)


def test_each_name_is_another_algorithm(model_folder: Path) -> None:
    found = problem(model_folder, algorithm="cma")
    asked = set()
    for name in FREE:
        algorithm = make_algorithm(name, found.space, found.seeds, found.ramp, CoarseToFineSettings(), 0)
        algorithm.tell({candidate: 1.0 + index for index, candidate in enumerate(algorithm.ask())})
        asked.add(tuple(algorithm.ask()))
    assert len(asked) == len(FREE)


@free
@pytest.mark.parametrize("size", ["mutations", "crossovers", "parents", "iterations", "mutation_probability"])
def test_sizes_of_the_paper_are_refused_for_the_others(name: str, size: str) -> None:
    with pytest.raises(SettingsError) as refused:
        AlgorithmSettings(algorithm=name, **{size: 0.5 if size == "mutation_probability" else 2})
    assert str(refused.value) == f"{size} is a size of algorithm 'paper'; choose that, or leave it away with {name!r}"


def test_of_several_wrong_sizes_the_first_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^mutations is a size"):
        AlgorithmSettings(algorithm="cma", iterations=2, parents=3, crossovers=4, mutations=5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "genetic", "population": 1}, "population is 1; give at least 2"),
        ({"algorithm": "cma", "population": 3}, "population is 3; give at least 4 with 'cma'"),
        ({"algorithm": "cma", "max_evaluations": 0}, "max evaluations is 0; give at least 1"),
        ({"watch": -1}, "watch is -1; give a number of rounds, or 0"),
        ({"patience": 0}, "patience is 0; give at least 1 round"),
        ({"max_gpu_hours": 0.0}, "max-gpu-hours is 0.0; give a number above 0"),
        ({"algorithm": "cma", "attention_factor": "loud"}, "attention factor 'loud' is unknown; .*"),
        ({"algorithm": "annealing"}, "algorithm 'annealing' is not known; use paper or genetic or cma"),
    ],
)
def test_unusable_settings_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=f"^{said}$"):
        AlgorithmSettings(**changes)


# --- The attention factor ---


@free
def test_the_attention_factor_is_searched_about_the_usual_one_where_that_is_asked_for(
    name: str, model_folder: Path
) -> None:
    usual = problem(model_folder).space.attention_factor
    assert usual > 1
    space = problem(model_folder, algorithm=name, attention_factor="search").space
    assert (space.attention_factor, space.attention_span) == (usual, ATTENTION_SPAN)
    for rule, factor in (("auto", usual), ("su", usual), ("none", 1.0), (1.3, 1.3)):
        space = problem(model_folder, algorithm=name, attention_factor=rule).space
        assert (space.attention_factor, space.attention_span) == (factor, 1.0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_scaled_model_keeps_its_attention_factor_unless_it_is_to_be_searched(name: str, scaled: Path) -> None:
    present = yarn(RopeFactors.identity(10000.0, 16, 64), 128)
    found = problem(scaled, algorithm=name)
    assert found.space.attention_factor == pytest.approx(present.attention_factor)
    assert found.space.attention_span == 1.0
    assert found.ramp is not None
    assert (found.ramp.present.lambdas, found.ramp.window, found.ramp.ratio) == (present.lambdas, 128, 2.0)
    if name in FREE:
        searched = problem(scaled, algorithm=name, attention_factor="search").space
        assert searched.attention_factor == found.space.attention_factor
        assert searched.attention_span == ATTENTION_SPAN


def test_a_ramp_leads_from_the_present_window_to_the_target(model_folder: Path) -> None:
    found = problem(model_folder, algorithm="genetic").ramp
    assert found == Ramp(RopeFactors.identity(10000.0, 16, 64), 64, 4.0)
