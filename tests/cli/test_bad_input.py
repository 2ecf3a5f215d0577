"""What a user gets wrong is said in one line, `error: ...`, with exit code 2, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_search import text, write_documents, write_model

from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear
from longrope.search.search import SearchReport

Run = Callable[..., Any]
FACTORS = linear(RopeFactors.identity(10000.0, 16, 64), 1024)


class Place:
    """A model, documents and an output folder, one of which a test spoils; runs commands on them."""

    def __init__(self, run: Run, model: Path, documents: Path, folder: Path) -> None:
        self._run = run
        self.model: object = model
        self.data: object = documents
        self.folder = folder
        self.output = folder / "out"

    def search(self, *more: object, length: str = "128") -> str:
        """The error of a search."""
        return self.error(
            "search", self.model, "--target-length", length, "--data", self.data, "--output", self.output,
            "--workers", 1, "--samples", 2, "--held-out", 3, *more,
        )  # fmt: skip

    def readjust(self, *more: object, windows: str = "32") -> str:
        """The error of a readjustment."""
        return self.error(
            "readjust", self.model, "--windows", windows, "--data", self.data, "--output", self.output,
            "--workers", 1, "--samples", 2, "--held-out", 3, *more,
        )  # fmt: skip

    def apply(self, factors: object) -> str:
        """The error of an application of factors."""
        return self.error("apply", self.model, "--factors", factors, "--output", self.output)

    def error(self, *arguments: object) -> str:
        """What is said after `error: `; checks all that holds for every mistake."""
        before = self._tree()
        code, out, err = self._run(*arguments)
        assert code == 2, err
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert self._tree() == before
        return lines[0].removeprefix("error: ")

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def _tree(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(longrope: Run, model_folder: Path, documents_file: Path, tmp_path: Path) -> Place:
    return Place(longrope, model_folder, documents_file, tmp_path)


# --- Data ---


def test_missing_data(place: Place) -> None:
    place.data = place.folder / "none.txt"
    assert re.search(r"none\.txt' does not exist; give \.txt, .*a folder", place.search())


def test_empty_data(place: Place) -> None:
    place.data = place.write("empty.txt", "")
    assert place.search() == f"data '{place.data}' is an empty file"


def test_data_without_text(place: Place) -> None:
    place.data = place.write("blank.jsonl", '{"text": "  "}\n\n')
    assert place.search() == f"data '{place.data}' holds no text"


def test_a_folder_without_documents(place: Place) -> None:
    place.data = place.folder / "folder"
    place.data.mkdir()
    (place.data / "notes.pdf").write_text("no")
    assert "holds no .txt, .md, .jsonl, .parquet files" in place.search()


def test_binary_data(place: Place) -> None:
    place.data = place.write("binary.txt", b"text\0\1\2")
    assert "binary.txt holds NUL bytes: it is binary, or not in UTF-8" in place.search()


def test_data_that_is_not_utf8(place: Place) -> None:
    place.data = place.write("latin.txt", "caf\xe9 ".encode("latin-1") * 300)
    assert "latin.txt is not UTF-8 text: " in place.search()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json}", "line 3 of '.*' is not valid JSON: "),
        ("[1, 2]", "line 3 of '.*' is not a JSON object"),
        ('{"body": "text"}', "there is no field 'text' in line 3 of '.*'; its fields are 'body'"),
        ('{"text": 7}', "field 'text' in line 3 of '.*' is not text but int"),
    ],
)
def test_an_invalid_json_line_is_named(place: Place, line: str, said: str) -> None:
    good = json.dumps({"text": text(0, 400)})
    place.data = place.write("data.jsonl", f"{good}\n{good}\n{line}\n{good}\n")
    assert re.match(said, place.search())


def test_no_document_long_enough(place: Place) -> None:
    place.data = place.folder / "texts"
    place.data.mkdir()
    for name, words in (("short.txt", 10), ("longest.txt", 40), ("middle.txt", 20)):
        (place.data / name).write_text(text(1, words))
    said = place.search()
    assert re.search(r"5 documents of at least 128 tokens are needed \(2 to search on and 3 held out\)", said)
    tokens = re.search(r"longest\S* .*?(\d+) tokens", said) or re.search(r"(\d+) tokens \(.*longest\.txt", said)
    assert tokens is not None, said
    assert 40 < int(tokens[1]) < 128


def test_too_few_documents_are_long_enough(place: Place) -> None:
    place.data = write_documents(place.folder / "data.jsonl", count=4)
    assert re.search(r"5 documents of at least 128 tokens are needed .* 4 ", place.search())


def test_too_little_text_to_join(place: Place) -> None:
    place.data = write_documents(place.folder / "data.jsonl", count=2, words=30)
    assert "5 samples of 128 tokens are needed, but the 2 documents read fill only " in place.search("--concatenate")


# --- Models ---


def test_missing_model(place: Place) -> None:
    place.model = place.folder / "none"
    assert place.search() == f"model folder {place.model} does not exist; give a folder or a hub id"


def test_a_name_that_is_no_model(place: Place) -> None:
    place.model = "nobody/nothing"
    assert place.search().startswith("model 'nobody/nothing' is neither a folder nor reachable on the hub")


def test_a_folder_without_a_model(place: Place) -> None:
    place.model = place.folder
    assert place.search() == f"{place.folder} holds no config.json; give a Hugging Face model folder"


def spoil_config(place: Place, **changes: Any) -> None:
    """A copy of the model with changed entries in its config; None removes one."""
    copy = Path(shutil.copytree(str(place.model), place.folder / "model"))
    config = json.loads((copy / "config.json").read_text())
    config.update(changes)
    (copy / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    place.model = copy


def test_a_model_without_rope(place: Place) -> None:
    model = place.folder / "gpt2"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    place.model = model
    assert re.match("model type 'gpt2' has no .*rotary position embedding", place.search())


def test_an_architecture_that_is_not_in_the_table(place: Place) -> None:
    model = place.folder / "starcoder2"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "starcoder2"}))
    place.model = model
    assert re.fullmatch(r"model type 'starcoder2' is not in the table, .*supported: .*llama.*", place.search())


def test_an_architecture_that_nobody_knows(place: Place) -> None:
    spoil_config(place, model_type="sphinx", architectures=None)
    assert re.search(r"config\.json cannot be used: .*sphinx", place.search())


def test_a_config_that_is_not_json(place: Place) -> None:
    model = place.folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{")
    place.model = model
    assert "config.json" in place.search()


def test_a_model_without_weights(place: Place) -> None:
    spoil_config(place)
    (Path(str(place.model)) / "model.safetensors").unlink()
    assert "holds no *.safetensors weights" in place.search()


def test_a_model_without_a_tokenizer(place: Place) -> None:
    spoil_config(place)
    for path in Path(str(place.model)).glob("*token*"):
        path.unlink()
    assert re.search(r"the tokenizer in .*model cannot be loaded: ", place.search())


@pytest.mark.parametrize(
    ("length", "said"),
    [
        ("64", "target length 64 is not longer than the present window of 64; give a longer one, or use .*readjust"),
        ("32", "target length 32 is not longer than the present window of 64"),
        ("many", "length 'many' is not a positive whole number of tokens; write 4096, 128k or 2m"),
        ("0", "length '0' is not a positive whole number"),
        ("-5", "length '-5' is not a positive whole number"),
        ("1.3k", "length '1.3k' is not a positive whole number"),
    ],
)
def test_target_lengths(place: Place, length: str, said: str) -> None:
    assert re.match(said, place.search(length=length))


# --- Settings ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--algorithm", "annealing"), "algorithm 'annealing' is not known; use paper"),
        (
            ("--algorithm", "cma", "--parents", "4"),
            "parents is a size of algorithm 'paper'; choose that, or leave it away with 'cma'",
        ),
        (
            ("--algorithm", "paper", "--attention-factor", "search"),
            "the attention factor is not searched by algorithm 'paper'; give su or",
        ),
        (("--watch", "-1"), "watch is -1; give a number of rounds, or 0"),
        (("--patience", "0"), "patience is 0; give at least 1 round"),
        (("--max-gpu-hours", "0"), "max-gpu-hours is 0.0; give a number above 0"),
        (("--executor", "slurm"), "executor 'slurm' is not known; use local or ray"),
        (("--ray-address", "auto"), "a ray address was given for the local executor; add --executor ray"),
        (("--dtype", "int4"), "dtype 'int4' is not known; use auto, "),
        (("--device", "tpu"), "device 'tpu' is not known; use auto, cpu"),
        (("--device", "cuda"), "device 'cuda' was asked for, but torch sees no .*; use --device cpu"),
        (("--attn", "magic"), "attention 'magic' is not known; use sdpa"),
        (("--attn", "flash_attention_2"), "attention 'flash_attention_2' needs a GPU"),
        (("--n-hat", "0,four"), "n_hat choices '0,four' are not whole numbers; write for example 0,2,4,8"),
        (("--n-hat", "-4"), "n_hat choices '-4' are not whole numbers"),
        (("--n-hat", ","), "n_hat choices ',' are not whole numbers"),
        (("--attention-factor", "loud"), "attention factor 'loud' is unknown; give su, yarn"),
        (("--attention-factor", "-1"), "attention factor '-1' is unknown"),
        (("--attention-factor", "nan"), "attention factor 'nan' is unknown"),
        (("--lambda-max", "0.5"), r"lambda_max 0\.5 is below lambda_min 1\.0; give at least 1\.0"),
        (("--lambda-max", "nan"), "lambda_max is nan; give a finite number above 0"),
        (("--lambda-max", "inf"), "lambda_max is inf; give a finite number above 0"),
        (("--samples", "0"), "samples is 0; give at least 1"),
        (("--held-out", "-1"), "held-out is -1; give 0 or more"),
        (("--max-documents", "0"), ".*documents.* is 0; .* at least 1"),
        (("--workers", "0"), "workers is 0; give at least 1"),
        (("--threads-per-worker", "0"), "threads per worker is 0; give at least 1"),
        (("--batch", "0"), "batch is 0; give at least 1"),
        (("--gpus-per-worker", "-1"), "GPUs per worker is -1.0; give 0 or more"),
        (("--population", "0"), "population is 0"),
        (("--algorithm", "paper", "--mutations", "-1"), "mutations is -1"),
        (("--algorithm", "paper", "--parents", "0"), "parents is 0"),
        (("--algorithm", "paper", "--iterations", "-1"), "iterations is -1"),
        (("--algorithm", "paper", "--mutation-probability", "1.5"), r"mutation probability is 1\.5"),
        (("--max-evaluations", "0"), "max evaluations is 0"),
    ],
)
def test_settings(place: Place, arguments: tuple[str, ...], said: str) -> None:
    if arguments == ("--device", "cuda"):
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    assert re.match(said, place.search(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("search",),
        ("nonsense",),
        ("search", "model", "--population", "many", "--target-length", "4k", "--data", "d", "--output", "o"),
        ("show", "factors.json", "--colour", "red"),
    ],
)
def test_usage(longrope: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = longrope(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err


# --- Output folders ---


def test_an_output_folder_with_another_run(place: Place, searched: SearchReport) -> None:
    shutil.copytree(searched.folder, place.output)
    holds = f"output folder {place.output} holds another run (evaluations.jsonl)"
    assert place.search() == f"{holds}; go on with it by --resume, or choose another"
    said = place.search("--resume", "--seed", 5, "--population", 8)
    assert "holds a run with other settings" in said
    assert "seed: then 0, now 5" in said


def test_the_demo_leaves_another_run_alone(place: Place, searched: SearchReport) -> None:
    shutil.copytree(searched.folder, place.output)
    assert "holds no run of a recipe" in place.error("demo", "--output", place.output)


def test_an_output_that_is_a_file(place: Place) -> None:
    place.output.write_text("mine")
    assert place.search() == f"output {place.output} is a file; give a folder"


def test_a_folder_to_apply_to_that_is_not_empty(place: Place) -> None:
    place.output.mkdir()
    (place.output / "mine.txt").write_text("mine")
    FACTORS.save(place.folder / "factors.json")
    assert place.apply(place.folder / "factors.json").endswith("exists and is not empty; choose another folder")


# --- Factors ---

MISTAKES = [
    ({"lambdas": [1.0, float("nan")] + [2.0] * 6}, "lambdas holds nan; every value must be finite"),
    ({"lambdas": [float("inf")] * 8}, "lambdas holds inf; every value must be finite"),
    ({"lambdas": [0.0] + [2.0] * 7}, r"lambda 0 is 0\.0; every lambda must be greater than 0"),
    ({"lambdas": [1.0] * 7 + [-2.0]}, r"lambda 7 is -2\.0; every lambda must be greater than 0"),
    ({"lambdas": ["1"] * 8}, "lambdas holds '1'; expected a number"),
    ({"lambdas": [1.0] * 4}, "4 lambdas given for rotary_dim 16; it needs 8"),
    ({"schema_version": 99}, "schema_version is 99, this longrope reads 1; "),
    ({"schema_version": None}, "schema_version is None"),
    ({"kind": "weights"}, "kind is 'weights', expected 'factors'"),
    ({"n_hat": -1}, "n_hat is -1; it must be 0 or more"),
    ({"attention_factor": 0}, r"attention_factor is 0\.0; it must be greater than 0"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES)
def test_factor_files(place: Place, changes: dict[str, Any], said: str) -> None:
    path = place.write("factors.json", json.dumps({**FACTORS.to_dict(), **changes}))
    assert re.fullmatch(rf"{path}: {said}.*", place.error("show", path))
    assert re.fullmatch(rf"{path}: {said}.*", place.apply(path))
    assert re.fullmatch(rf"{path}: {said}.*", place.readjust("--factors", path))


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is not valid JSON"), ("[]", "expected a JSON object, found list"), (b"\xff\xfe", "is not valid JSON")],
)
def test_files_that_hold_no_factors(place: Place, content: str | bytes, said: str) -> None:
    path = place.write("factors.json", content)
    assert said in place.error("show", path)
    assert said in place.apply(path)


def test_missing_factors(place: Place) -> None:
    path = place.folder / "none.json"
    for said in (place.error("show", path), place.apply(path), place.readjust("--factors", path)):
        assert said == f"factors file {path} does not exist; give the factors.json of a search"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rotary_dim": 32, "lambdas": (2.0,) * 16},
            "the factors are for rotary_dim 32, the model rotates 16 dimensions",
        ),
        ({"rope_theta": 500000.0}, "the factors are for rope_theta 500000, the model has 10000; "),
    ],
)
def test_factors_of_another_model(place: Place, changes: dict[str, Any], said: str) -> None:
    FACTORS.replace(**changes).save(place.folder / "factors.json")
    assert place.apply(place.folder / "factors.json").startswith(said)
    assert place.readjust("--factors", place.folder / "factors.json").startswith(said)


def test_a_plot_of_an_unknown_kind(place: Place) -> None:
    FACTORS.save(place.folder / "factors.json")
    code, _, err = place._run("show", place.folder / "factors.json", "--plot", place.folder / "factors.doc")
    assert code == 2
    assert err.startswith("error: ")
    assert ".doc" in err


# --- Readjustment ---


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ("", "no windows given; name at least one length, for example --windows 4k,8k"),
        ("32,1k", "window 1k is not shorter than the present window of 1k; use `longrope search` to extend it"),
        ("32;48", "length '32;48' is not a positive whole number of tokens"),
    ],
)
def test_windows(place: Place, extended: Path, windows: str, said: str) -> None:
    place.model = extended
    assert place.readjust(windows=windows).startswith(said)


def test_readjusting_a_model_that_was_not_extended(place: Place) -> None:
    assert place.readjust().startswith("the model is not extended")


# --- As a process of its own, workers included ---


def test_weights_that_a_worker_cannot_load(place: Place, documents_file: Path) -> None:
    model = write_model(place.folder / "model")
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:1000])
    command = [
        sys.executable, "-m", "longrope", "search", model, "--target-length", "128", "--data", documents_file,
        "--output", place.output, "--workers", 1, "--samples", 2, "--held-out", 0,
    ]  # fmt: skip
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert re.fullmatch(r"error: the weights in .* cannot be loaded: .*", ran.stderr.splitlines()[-1])
    assert "Traceback" not in ran.stderr
    assert not list(place.output.iterdir())
