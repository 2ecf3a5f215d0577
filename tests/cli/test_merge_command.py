"""`longrope merge`: options, what is printed, and that the other commands take the folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longrope.finetune.adapters import add_adapters, save_adapter
from longrope.finetune.settings import AdapterSettings
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

Run = Callable[..., Any]
FACTORS = yarn(RopeFactors.identity(10000.0, 16, 64), 256)


@pytest.fixture(scope="module")
def adapter(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter of the tiny model; not to be changed."""
    source = ModelSource(str(model_folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = add_adapters(source.load_pretrained(), AdapterSettings(), "lora")
    return save_adapter(adapted, source, FACTORS, tmp_path_factory.mktemp("adapters") / "adapter")


def test_merged_folder_is_a_model_for_the_other_commands(longrope: Run, adapter: Path, tmp_path: Path) -> None:
    ended = longrope("merge", adapter, "--output", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    first, *notes = ended.out.splitlines()
    assert first == f"{tmp_path / 'out'}: windows 64, 256"
    assert all(note.startswith("note: ") for note in notes)
    shown = longrope("show", tmp_path / "out" / "longrope.json")
    assert shown.code == 0
    assert "window 256" in shown.out
    checked = longrope("check", tmp_path / "out", "--engine", "hf", "--json")
    assert json.loads(checked.out)["same"] is False  # the short window has another attention factor
    assert (
        longrope("apply", tmp_path / "out", "--factors", tmp_path / "out" / "longrope.json", "-o", tmp_path / "2").code
        == 0
    )


def test_options(longrope: Run, adapter: Path, model_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(adapter, tmp_path / "moved")
    (moved / "longrope.json").unlink()
    FACTORS.replace(n_hat=4).save(tmp_path / "factors.json")
    arguments = ("merge", moved, "--base", model_folder, "--factors", tmp_path / "factors.json", "-o", tmp_path / "out")
    refused = longrope(*arguments)
    assert refused.code == 2
    assert "n_hat = 4" in refused.err
    ended = longrope(*arguments, "--code", "--dtype", "bf16")
    assert ended.code == 0, ended.err
    assert all(note.startswith("note: without trust_remote_code, ") for note in ended.out.splitlines()[1:])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["longrope"]["windows"][-1]["n_hat"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dtype", "int4"), "dtype 'int4' is not known; use auto, fp32, bf16, fp16"),
        (("--model-revision", "main"), "--model-revision is about a model on the hub; add --base MODEL"),
        (("--base", "no/such/folder"), "model folder no/such/folder does not exist; give a folder or a hub id"),
        (("--factors", "none.json"), "factors file none.json does not exist"),
    ],
)
def test_bad_input_is_one_line(longrope: Run, adapter: Path, tmp_path: Path, options: Any, said: str) -> None:
    ended = longrope("merge", adapter, "--output", tmp_path / "out", *options)
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(rf"error: {re.escape(said)}[^\n]*\n", ended.err), ended.err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_an_adapter(longrope: Run, model_folder: Path, tmp_path: Path) -> None:
    ended = longrope("merge", model_folder, "--output", tmp_path / "out")
    assert ended.code == 2
    assert re.fullmatch(r"error: .* holds no adapter_config.json; give the folder of an adapter\n", ended.err)
