"""The command line as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_search import InProcessPool, in_process, search_in_process, settings

from longrope.cli.main import main
from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.search.search import SearchReport


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def longrope(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `longrope ARGUMENTS` in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["longrope", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        assert isinstance(code, int)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def pools() -> Iterator[list[InProcessPool]]:
    """Runs start no workers."""
    with in_process() as pools:
        yield pools


@pytest.fixture(scope="session")
def searched(model_folder: Path, documents_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchReport:
    """A finished search to 128 tokens; not to be changed."""
    return search_in_process(settings(model_folder, documents_file, tmp_path_factory.mktemp("runs") / "searched"))[0]


@pytest.fixture(scope="session")
def extended(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a window of 1024 by YaRN's factors; not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "extended"
    export_folder(ModelSource(str(model_folder)), yarn(RopeFactors.identity(10000.0, 16, 64), 1024), folder)
    return folder
