"""Weights in a folder: fingerprints that follow their content."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from longrope.exceptions import UnsupportedModelError
from longrope.model.weights import count_numbers, fingerprint


@pytest.fixture
def folder(make_tiny_model, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_numbers_of_all_files_but_those_for_other_programs(make_tiny_model, folder):
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    numbers = sum(each.numel() for each in make_tiny_model().parameters())
    assert count_numbers(folder) == numbers
    add_a_shard(folder)
    assert count_numbers(folder) == 2 * numbers


def test_a_folder_without_safetensors_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"holds no \*\.safetensors weights; convert") as refusal:
        fingerprint(folder)
    assert "\n" not in str(refusal.value)


def test_fingerprint_is_that_of_the_content(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "copy"))
    (copy / "README.md").write_text("the same model")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert fingerprint(copy) == fingerprint(folder)


def change_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 20000.0
    (folder / "config.json").write_text(json.dumps(config))


def add_a_schedule(folder):
    (folder / "longrope.json").write_text("{}")


def add_a_shard(folder):
    shutil.copy(folder / "model.safetensors", folder / "more.safetensors")


@pytest.mark.parametrize("change", [change_a_weight, change_the_config, add_a_schedule, add_a_shard])
def test_fingerprint_tells_models_apart(folder, change):
    before = fingerprint(folder)
    change(folder)
    assert fingerprint(folder) != before


@pytest.mark.parametrize("where", [0, -1])
def test_fingerprint_of_a_large_file_sees_both_ends(folder, where):
    path = folder / "model.safetensors"
    data = bytearray(8 << 20)
    path.write_bytes(data)
    before = fingerprint(folder)
    data[where] = 1
    path.write_bytes(data)
    assert fingerprint(folder) != before
