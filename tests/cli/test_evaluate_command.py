"""`longrope evaluate` and `longrope compare` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

Run = Callable[..., Any]


@pytest.fixture
def factors(tmp_path: Path) -> Path:
    path = tmp_path / "factors.json"
    yarn(RopeFactors.identity(10000.0, 16, 64), 256).save(path)
    return path


def test_compare_makes_one_table_of_all_methods(
    longrope: Run, model_folder: Path, documents_file: Path, factors: Path, tmp_path: Path
) -> None:
    ended = longrope(
        "compare", model_folder, "--factors", factors, "--lengths", "64,128", "--data", documents_file,
        "--samples", 2, "--workers", 1, "--output", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert list(dict.fromkeys(table["method"])) == ["none", "pi", "ntk", "dynamic-ntk", "yarn", "longrope"]
    assert all(f"{value:.4f}" in ended.out for value in table["perplexity"])


def test_perplexity_and_passkey_of_the_model_as_it_is(
    longrope: Run, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    ended = longrope(
        "evaluate", "perplexity", model_folder, "--lengths", 64, "--data", documents_file, "--samples", 2,
        "--protocol", "sliding", "--stride", 32, "--document-length", 128, "--workers", 1,
        "--output", tmp_path / "ppl",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "ppl" / "results.json").read_text())
    assert (record["protocol"], record["stride"]) == ("sliding", 32)
    assert record["command"][:4] == ["longrope", "evaluate", "perplexity", str(model_folder)]
    assert record["command"][-6:-2] == ["--document-length", "128", "--protocol", "sliding"]
    assert [(row["method"], row["tokens"]) for row in record["results"]] == [("none", 254)]

    ended = longrope(
        "evaluate", "passkey", model_folder, "--lengths", 250, "--trials", 2, "--workers", 1,
        "--output", tmp_path / "key",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert pd.read_csv(tmp_path / "key" / "results.csv")["trials"].tolist() == [2]


def test_an_unknown_suite_lists_those_there_are(longrope: Run) -> None:
    ended = longrope("evaluate", "vibes", "demo")
    assert (ended.code, ended.err) == (2, "error: suite 'vibes' is not known; use passkey, perplexity\n")


def test_a_length_over_the_target(longrope: Run, model_folder: Path, factors: Path, tmp_path: Path) -> None:
    given = ("evaluate", "passkey", model_folder, "--factors", factors, "--lengths", 512, "--output", tmp_path / "run")
    ended = longrope(*given)
    assert ended.code == 2
    assert ended.err.startswith("error: length 512 is over the 256")
    assert len(ended.err.splitlines()) == 1
