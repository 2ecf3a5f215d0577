"""search/run_search.py asks for the search that `longrope search` runs, but for what was edited in it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from scripts_by_path import checkout_script, load_script

from longrope.search.settings import ALGORITHMS, DataSettings, SearchSettings

SCRIPT = checkout_script("search/run_search.py")
GIVEN = ("owner/model", "--target-length", "128k", "--data", "books/", "--output", "runs/it")


class Asked(Exception):
    """What the search was about to be run with."""


@pytest.fixture
def script() -> ModuleType:
    return load_script(SCRIPT)


def asked(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> SearchSettings:
    """The settings of the search that the script runs with these options."""

    def search(settings: SearchSettings, progress: Any) -> None:
        raise Asked(settings)

    monkeypatch.setattr(script, "search", search)
    monkeypatch.setattr("sys.argv", ["run_search.py", *GIVEN, *options])
    with pytest.raises(Asked) as found:
        script.main()
    settings: SearchSettings = found.value.args[0]
    return settings


def test_as_it_stands_it_is_the_default_search(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SearchSettings(
        model="owner/model", target_length=131072, output="runs/it", data=DataSettings(source="books/")
    )
    assert asked(script, monkeypatch) == plain


def test_the_number_of_candidates_is_a_setting_and_an_option(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.ALGORITHM["max_evaluations"] = 50
    assert asked(script, monkeypatch).algorithm.max_evaluations == 50
    assert asked(script, monkeypatch, "--max-evaluations", "7").algorithm.max_evaluations == 7


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_the_paper_has_more_sizes(
    algorithm: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.ALGORITHM |= {"algorithm": algorithm, "mutations": 3}
    if algorithm == "paper":
        assert asked(script, monkeypatch).algorithm.mutations == 3
    else:
        monkeypatch.setattr("sys.argv", ["run_search.py", *GIVEN])
        assert script.main() == 2
        assert "mutations is a size of algorithm 'paper'" in capsys.readouterr().err
