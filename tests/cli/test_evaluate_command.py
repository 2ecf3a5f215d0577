"""`longrope evaluate` and `longrope compare` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_search import write_documents, write_model

from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

Run = Callable[..., Any]


@pytest.fixture
def factors(tmp_path: Path) -> Path:
    path = tmp_path / "factors.json"
    yarn(RopeFactors.identity(10000.0, 16, 64), 256).save(path)
    return path


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 512 tokens."""
    return write_model(tmp_path_factory.mktemp("model"), max_position_embeddings=512)


@pytest.fixture(scope="module")
def haystack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("haystack") / "text.jsonl", 3)


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
    assert record["command"][4:6] == ["--lengths", "64"]
    assert [(row["method"], row["tokens"]) for row in record["results"]] == [("none", 254)]

    ended = longrope(
        "evaluate", "passkey", model_folder, "--lengths", 250, "--trials", 2, "--workers", 1,
        "--output", tmp_path / "key",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert pd.read_csv(tmp_path / "key" / "results.csv")["trials"].tolist() == [2]


def test_needles(longrope: Run, longer: Path, haystack: Path, tmp_path: Path) -> None:
    ended = longrope(
        "evaluate", "needle", longer, "--haystack", haystack, "--lengths", 450, "--depth-interval", 50, "--digits", 3,
        "--workers", 1, "--output", tmp_path / "needle",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert pd.read_csv(tmp_path / "needle" / "records.csv")["depth"].tolist() == [0, 0.5, 1]
    assert pd.read_csv(tmp_path / "needle" / "results.csv")["trials"].tolist() == [3]

    ended = longrope(
        "evaluate", "needle-perplexity", longer, "--data", haystack, "--lengths", "400,450", "--samples", 2,
        "--workers", 1, "--output", tmp_path / "answers",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    table = pd.read_csv(tmp_path / "answers" / "results.csv")
    assert table["documents"].tolist() == [2, 2]
    assert table["tokens"].iloc[0] < 40


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("needle", "--haystack", "HAYSTACK", "--lengths", "32k"), "fewer than the length 32k"),
        (("needle", "--haystack", "HAYSTACK", "--lengths", "450", "--depth-interval", "0"), "give 0.1 to 100"),
        (("needle", "--haystack", "nowhere.txt", "--lengths", "450"), "nowhere.txt"),
        (("needle-perplexity", "--data", "HAYSTACK", "--field", "story", "--lengths", "450"), "story"),
        (("needle-perplexity", "--data", "HAYSTACK", "--samples", "2", "--lengths", "20"), "no room"),
        (("passkey", "--lengths", "16"), "no room"),
        (("passkey", "--lengths", "many"), "many"),
        (("passkey", "--lengths", ","), "give lengths, such as"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    given: tuple[str, ...], message: str, longrope: Run, longer: Path, haystack: Path, tmp_path: Path
) -> None:
    suite, *options = (str(haystack) if each == "HAYSTACK" else each for each in given)
    ended = longrope("evaluate", suite, longer, *options, "--output", tmp_path / "run")
    assert ended.code == 2
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert ended.err.endswith(f"{errors[0]}\n")
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


def test_an_unknown_suite_lists_those_there_are(longrope: Run) -> None:
    ended = longrope("evaluate", "vibes", "demo")
    known = "harness, multi-document-qa, needle, needle-perplexity, passkey, perplexity, summarisation"
    assert (ended.code, ended.err) == (2, f"error: suite 'vibes' is not known; use {known}\n")


def test_a_length_over_the_target(longrope: Run, model_folder: Path, factors: Path, tmp_path: Path) -> None:
    given = ("evaluate", "passkey", model_folder, "--factors", factors, "--lengths", 512, "--output", tmp_path / "run")
    ended = longrope(*given)
    assert ended.code == 2
    assert ended.err.startswith("error: length 512 is over the 256")
    assert len(ended.err.splitlines()) == 1
