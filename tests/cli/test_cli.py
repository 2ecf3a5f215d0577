"""The commands from their arguments to what they print and leave behind."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import InProcessPool, in_process
from transformers import AutoModelForCausalLM
from typer.main import get_command

import longrope as package
from longrope.cli.main import app
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import load_factors
from longrope.search.search import SearchReport

Run = Callable[..., Any]
SIZES = (
    "--algorithm",
    "paper",
    "--population",
    6,
    "--mutations",
    2,
    "--crossovers",
    2,
    "--iterations",
    2,
    "--parents",
    4,
    "--workers",
    1,
)
HEAVY = {"torch", "transformers", "numpy", "pandas", "ray", "matplotlib", "datasets", "safetensors"}


def search_arguments(model: Path, documents: Path, output: Path, *more: object) -> list[object]:
    return [
        "search", model, "--target-length", "128", "--data", documents, "--output", output, "--samples", 2,
        "--held-out", 3, "--n-hat", "0,4,16", *SIZES, *more,
    ]  # fmt: skip


# --- What answers at once ---


def test_help_and_version_import_nothing_heavy() -> None:
    code = f"""
import sys
from longrope.cli.main import main
helps = [[*name, "--help"] for name in ([], ["search"], ["finetune"], ["readjust"], ["merge"], ["demo"])]
for arguments in (*helps, ["--version"], []):
    sys.argv = ["longrope", *arguments]
    try:
        main()
    except SystemExit:
        pass
print("loaded:", sorted({HEAVY!r} & sys.modules.keys()))
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == "loaded: []"
    assert "readjust" in printed
    assert "--target-length" in printed
    assert "--seq-length" in printed


def test_help_shows_all_of_its_words() -> None:
    def parameters(command: Any) -> Iterator[Any]:
        yield from command.params
        for below in getattr(command, "commands", {}).values():
            yield from parameters(below)

    for parameter in parameters(get_command(app)):  # [all] is markup to rich, and not shown
        assert not re.search(r"\[[a-z#/@]", getattr(parameter, "help", None) or ""), parameter.name


@pytest.mark.parametrize("arguments", [("--version",), ("--debug", "--version")])
def test_version(longrope: Run, arguments: tuple[str, ...]) -> None:
    assert longrope(*arguments) == (0, f"longrope {package.__version__}\n", "")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "longrope", "show", str(tmp_path / "none.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(r"error: factors file .*none\.json does not exist; .*\n", ran.stderr)


# --- search ---


def test_search_writes_its_files_and_prints_the_table(
    longrope: Run, pools: list[InProcessPool], model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = longrope(*search_arguments(model_folder, documents_file, run))
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in run.iterdir()) == [
        "convergence.png", "evaluations.jsonl", "factors.json", "factors.png", "results.csv", "run.json",
    ]  # fmt: skip
    for name in ("none", "pi", "ntk", "dynamic-ntk", "yarn", "longrope"):
        assert re.search(rf"│ {name} +│", ended.out), name
    factors = load_factors(run / "factors.json")
    assert isinstance(factors, RopeFactors)
    rows = factors.provenance["results"]["methods"]
    for row in rows:
        assert f"{row['held_out_perplexity']['128']:.4f}" in ended.out
    assert "against the better YaRN" in ended.out
    assert "nats per token" in ended.out
    assert "factors.json" in ended.out
    assert str(run) in ended.out
    # Results on standard output, progress on standard error, which says first what it will cost.
    assert "pretrained on 64 tokens, present window 64, 8 rotated pairs" in ended.err
    assert "28 evaluations to search" in ended.err
    assert "error" not in ended.err


def test_search_without_held_out_documents(
    longrope: Run, pools: list[InProcessPool], model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = longrope(*search_arguments(model_folder, documents_file, run, "--held-out", 0))
    assert ended.code == 0, ended.err
    assert len(re.findall(r"│ +- │\n", ended.out)) >= 11
    assert "YaRN" not in ended.out
    assert (run / "convergence.png").stat().st_size > 0
    shown = longrope("show", run / "factors.json")
    assert shown.code == 0
    assert len(re.findall(r"│ +- │\n", shown.out)) >= 11
    assert "None │" not in shown.out


def test_search_without_matplotlib_says_so(
    longrope: Run,
    pools: list[InProcessPool],
    model_folder: Path,
    documents_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    ended = longrope(*search_arguments(model_folder, documents_file, tmp_path / "run"))
    assert ended.code == 0
    assert "no plots: matplotlib is not installed (pip install longrope[report])" in ended.out
    assert not list((tmp_path / "run").glob("*.png"))


def test_every_option_of_a_search_arrives(longrope: Run, monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    received: list[Any] = []

    def stop(settings: Any, progress: Any) -> None:
        received.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("longrope.search.search.search", stop)
    options = {
        "--target-length": ("2k", "target_length", 2048),
        "--data": ("texts", "data.source", "texts"),
        "--field": ("body", "data.field", "body"),
        "--split": ("validation", "data.split", "validation"),
        "--revision": ("v1", "data.revision", "v1"),
        "--model-revision": ("v2", "revision", "v2"),
        "--config": ("en", "data.config", "en"),
        "--max-documents": ("77", "data.max_documents", 77),
        "--samples": ("4", "data.samples", 4),
        "--held-out": ("0", "data.held_out", 0),
        "--concatenate": (None, "data.concatenate", True),
        "--last": ("255", "data.last", 255),
        "--output": ("out", "output", "out"),
        "--seed": ("5", "seed", 5),
        "--algorithm": ("paper", "algorithm.algorithm", "paper"),
        "--population": ("11", "algorithm.population", 11),
        "--mutations": ("12", "algorithm.mutations", 12),
        "--crossovers": ("13", "algorithm.crossovers", 13),
        "--parents": ("10", "algorithm.parents", 10),
        "--mutation-probability": ("0.25", "algorithm.mutation_probability", 0.25),
        "--iterations": ("15", "algorithm.iterations", 15),
        "--max-evaluations": ("16", "algorithm.max_evaluations", 16),
        "--max-gpu-hours": ("1.5", "algorithm.max_gpu_hours", 1.5),
        "--patience": ("6", "algorithm.patience", 6),
        "--racing": (None, "algorithm.racing", True),
        "--watch": ("7", "algorithm.watch", 7),
        "--n-hat": ("0,8, 16", "algorithm.n_hat", (0, 8, 16)),
        "--lambda-max": ("9.5", "algorithm.lambda_max", 9.5),
        "--attention-factor": ("yarn", "algorithm.attention_factor", "yarn"),
        "--workers": ("3", "execution.workers", 3),
        "--threads-per-worker": ("2", "execution.threads_per_worker", 2),
        "--gpus-per-worker": ("2", "execution.gpus_per_worker", 2.0),
        "--sp": ("2", "execution.sp", 2),
        "--batch": ("8", "execution.batch", 8),
        "--executor": ("ray", "execution.executor", "ray"),
        "--ray-address": ("auto", "execution.ray_address", "auto"),
        "--dtype": ("bf16", "execution.dtype", "bf16"),
        "--device": ("cpu", "execution.device", "cpu"),
        "--attn": ("eager", "execution.attention", "eager"),
        "--trust-remote-code": (None, "execution.trust_remote_code", True),
        "--resume": (None, "resume", True),
    }
    arguments = [part for name, (value, *_) in options.items() for part in (name, value) if part is not None]
    assert longrope("search", model_folder, *arguments).code == 130
    [settings] = received
    assert settings.model == str(model_folder)
    for name, (_, path, expected) in options.items():
        value = settings
        for attribute in path.split("."):
            value = getattr(value, attribute)
        assert value == expected, name


def test_defaults_are_those_of_the_paper(longrope: Run, monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    received: list[Any] = []

    def stop(settings: Any, progress: Any) -> None:
        received.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("longrope.search.search.search", stop)
    for length in ("128k", "1m"):
        longrope(
            "search",
            model_folder,
            "--target-length",
            length,
            "--data",
            "texts",
            "--output",
            "out",
            "--algorithm",
            "paper",
        )
    small, large = received
    sizes = small.algorithm.sizes(small.target_length)
    assert (sizes.population, sizes.mutations, sizes.crossovers, sizes.parents) == (64, 16, 16, 32)
    assert (sizes.iterations, sizes.mutation_probability, sizes.max_evaluations) == (40, 0.3, None)
    halved = large.algorithm.sizes(large.target_length)
    assert (halved.population, halved.mutations, halved.crossovers, halved.parents) == (32, 8, 8, 32)
    assert (small.data.sample_count(small.target_length), large.data.sample_count(large.target_length)) == (5, 3)
    assert small.algorithm.n_hat_choices == (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
    assert (small.seed, small.data.held_out, small.algorithm.attention_factor) == (0, 10, "auto")


@pytest.mark.parametrize(("options", "races"), [((), True), (("--racing",), True), (("--no-racing",), False)])
@pytest.mark.usefixtures("pools")
def test_a_search_from_coarse_to_fine(
    options: tuple[str, ...], races: bool, longrope: Run, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    ended = longrope(
        "search", model_folder, "--target-length", 128, "--data", documents_file, "--output", tmp_path / "run",
        "--samples", 2, "--held-out", 2, "--workers", 1, "--algorithm", "cma", "--population", 4,
        "--max-evaluations", 7, "--watch", 1, *options,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    provenance = json.loads((tmp_path / "run" / "factors.json").read_text())["provenance"]
    assert provenance["method"] == "longrope search, algorithm cma"
    assert bool(provenance["settings"].get("racing")) == races
    assert provenance["results"]["evaluations"] == 7
    assert len(provenance["results"]["looks"]) > 0
    assert "after 3 candidates: search " in ended.err


@pytest.mark.usefixtures("pools")
def test_a_readjustment_from_coarse_to_fine_by_command(
    longrope: Run, extended: Path, documents_file: Path, tmp_path: Path
) -> None:
    ended = longrope(
        "readjust", extended, "--windows", "32", "--data", documents_file, "--output", tmp_path / "run",
        "--samples", 2, "--held-out", 2, "--workers", 1, "--algorithm", "cma", "--population", 4,
        "--max-evaluations", 7,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "run" / "window-32" / "factors.json").read_text())
    assert content["provenance"]["method"] == "longrope readjust, algorithm cma"


# --- show ---


def test_show_prints_and_plots_factors(longrope: Run, searched: SearchReport, tmp_path: Path) -> None:
    ended = longrope("show", searched.folder / "factors.json", "--plot", tmp_path / "factors.svg")
    assert ended.code == 0, ended.err
    factors = searched.factors
    assert f"window 128: 64 -> 128 (s = 2), rope_theta 10000, rotary_dim 16, n_hat {factors.n_hat}" in ended.out
    for index, value in enumerate(factors.lambdas):
        assert re.search(rf"│ {index} +│ {value:g} +│", ended.out)
    assert "seed: 0" in ended.out
    for row in factors.provenance["results"]["methods"]:
        assert f"{row['search_perplexity']:.4f}" in ended.out
    assert (tmp_path / "factors.svg").read_text().lstrip().startswith("<?xml")


def test_show_prints_every_window_of_a_schedule(longrope: Run, extended: Path) -> None:
    ended = longrope("show", extended / "longrope.json")
    assert ended.code == 0
    assert re.findall(r"^window (\w+):", ended.out, re.MULTILINE) == ["64", "1k"]


# --- apply ---


def with_n_hat(searched: SearchReport, folder: Path, flat: bool = True) -> Path:
    """The factors of the search with n_hat 4, and whether they name a candidate without."""
    content = json.loads((searched.folder / "factors.json").read_text())
    content["n_hat"] = 4
    if not flat:
        content["provenance"]["results"]["best_without_n_hat"] = None
    (folder / "n_hat.json").write_text(json.dumps(content))
    return folder / "n_hat.json"


def test_apply_writes_a_folder_that_transformers_loads(
    longrope: Run, searched: SearchReport, model_folder: Path, tmp_path: Path
) -> None:
    file, output = with_n_hat(searched, tmp_path), tmp_path / "out"
    ended = longrope("apply", model_folder, "--factors", file, "--output", output, "--without-n-hat")
    assert ended.code == 0, ended.err
    assert f"{output}: windows 64, 128" in ended.out
    parameters = AutoModelForCausalLM.from_pretrained(output).config.rope_parameters
    assert parameters["rope_type"] == "longrope"
    flat = searched.solution.best_without_n_hat
    assert flat is not None
    assert parameters["long_factor"] == list(flat.lambdas)
    assert "note: sequences of 1 to 64 tokens get attention factor 1.0801 instead of 1.0000" in ended.out


def test_apply_refuses_n_hat_and_offers_what_it_can(
    longrope: Run, searched: SearchReport, model_folder: Path, tmp_path: Path
) -> None:
    for flat, offer in ((True, "add --without-n-hat"), (False, "search with --n-hat 0")):
        file = with_n_hat(searched, tmp_path, flat)
        ended = longrope("apply", model_folder, "--factors", file, "--output", tmp_path / "out")
        assert ended.code == 2
        assert re.fullmatch(rf"error: the factors for 128 have n_hat = 4, .*{offer}.*\n", ended.err)
        assert not (tmp_path / "out").exists()


# --- readjust ---


def test_readjust_prints_a_table_a_window(
    longrope: Run, pools: list[InProcessPool], extended: Path, documents_file: Path, tmp_path: Path
) -> None:
    ended = longrope(
        "readjust", extended, "--windows", "32,48", "--data", documents_file, "--output", tmp_path / "run",
        "--samples", 2, "--held-out", 3, "--n-hat", "0,4", *SIZES,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    for length in (32, 48):
        assert f"Perplexity at window {length}" in ended.out
        assert f"against the long factors at {length}, held out: " in ended.out
        assert f"window {length}: lambda up to 8 (the long factors reach 16)" in ended.err
    assert f"schedule with windows 32, 48, 64, 1k: {tmp_path / 'run' / 'factors.json'}" in ended.out
    shown = longrope("show", tmp_path / "run" / "factors.json")
    assert re.findall(r"^window (\w+):", shown.out, re.MULTILINE) == ["32", "48", "64", "1k"]


# --- demo ---


def test_demo_carries_out_its_recipe_on_the_standard_library(
    longrope: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    received: list[Any] = []

    def stop(recipe: Any, output: Path, progress: Any, force: bool) -> None:
        received.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("longrope.pipeline.run.extend", stop)
    ended = longrope("demo", "seed=3", "search-1k.algorithm.max_evaluations=7", "--output", tmp_path / "demo")
    assert ended.code == 130
    [recipe] = received
    assert (recipe.model.name, recipe.seed) == ("demo", 3)
    kinds = [stage.kind for stage in recipe.stages if stage.kind != "evaluate"]
    assert kinds == ["search", "finetune", "search", "finetune", "search", "readjust", "export"]
    search = next(stage for stage in recipe.stages if stage.kind == "search")
    assert search.settings.algorithm.max_evaluations == 7
    assert Path(search.settings.data.source) == tmp_path / "demo" / "texts" / "search.jsonl"


def test_demo_writes_texts_that_have_no_module_in_common(longrope: Run, tmp_path: Path) -> None:
    assert longrope("demo", "--texts", tmp_path).code == 0

    def names(part: str) -> set[str]:
        return {json.loads(line)["name"] for line in (tmp_path / f"{part}.jsonl").read_text().splitlines()}

    assert not names("training") & names("held-out")
    assert not names("search") & names("evaluation")
    assert names("search") | names("evaluation") == names("held-out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_full_demo_wants_a_gpu(longrope: Run, tmp_path: Path) -> None:
    ended = longrope("demo", "--full", "--output", tmp_path / "demo")
    assert ended.code == 2
    assert ended.err.startswith("error: demo --full scores texts of 131072 tokens")
    assert not (tmp_path / "demo").exists()


# --- How a command ends when it does not end well ---


def test_a_failed_run_exits_with_1(longrope: Run, model_folder: Path, documents_file: Path, tmp_path: Path) -> None:
    with in_process(lambda task: "out of memory"):
        ended = longrope(*search_arguments(model_folder, documents_file, tmp_path / "run"))
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == ("error: the first 3 evaluations failed, so the search ends: out of memory")
    assert "Traceback" not in ended.err


def test_ctrl_c_exits_with_130_and_the_run_goes_on_with_resume(
    longrope: Run, model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    asked = []

    def interrupted(task: Any) -> None:
        asked.append(task)
        if len(asked) == 10:
            raise KeyboardInterrupt

    arguments = search_arguments(model_folder, documents_file, tmp_path / "run")
    with in_process(interrupted):
        ended = longrope(*arguments)
    assert ended.code == 130
    told = "interrupted; extend goes on when it is given again, other commands with --resume"
    assert ended.err.splitlines()[-1] == told
    assert "Traceback" not in ended.err
    with in_process() as pools:
        assert longrope(*arguments, "--resume").code == 0
    assert not set(asked[:9]) & set(pools[0].asked)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback(longrope: Run, tmp_path: Path, place: int) -> None:
    arguments = ["show", str(tmp_path / "none.json")]
    arguments.insert(place, "--debug")
    ended = longrope(*arguments)
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: factors file ")


def test_what_the_operating_system_refuses_is_one_line(longrope: Run, searched: SearchReport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = longrope("show", searched.folder / "factors.json", "--plot", tmp_path / "file" / "factors.png")
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    assert ended.err.startswith("error: ")
