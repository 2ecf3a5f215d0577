"""What commands are given: pools in this process, a finished search, an extended model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_search import InProcessPool, in_process, search_in_process, settings

from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.search.search import SearchReport


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
