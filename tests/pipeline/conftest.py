"""A finished run of the tiny recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_recipes import Whole, carry_out, write_recipe

from longrope.pipeline.recipe import read_recipe


@pytest.fixture(scope="session")
def recipe_file(model_folder: Path, documents_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe; not to be changed."""
    return write_recipe(tmp_path_factory.mktemp("recipes") / "tiny.yaml", model_folder, documents_file)


@pytest.fixture(scope="session")
def whole(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The tiny recipe carried out; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    _, seen = carry_out(read_recipe(recipe_file), folder)
    return Whole(recipe_file, folder, seen)
