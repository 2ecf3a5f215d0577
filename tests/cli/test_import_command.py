"""`longrope import`: from published files to a factor file, and what it says of mistakes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, load_factors

Run = Callable[..., Any]
LONG = [1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1]
SU = math.sqrt(1 + math.log(4) / math.log(64))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text((",".join(map(str, LONG)) + "\n") * 2)
    return path


def write_config(folder: Path, parameters: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    widths = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **widths, "rope_scaling": parameters}))
    return folder


def refused(longrope: Run, *arguments: object) -> str:
    """The line that says what is wrong."""
    code, out, err = longrope("import", *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*\n", err)
    return str(err).removeprefix("error: ").strip()


def test_a_table_for_a_model(longrope: Run, table: Path, model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "factors.json"
    expected = RopeFactors(tuple(LONG), 10000.0, 16, 64, 256, attention_factor=SU)
    for model in (model_folder, model_folder / "config.json"):
        ended = longrope("import", table, "--model", model, "--target-length", 256, "--output", output)
        assert (ended.code, ended.err) == (0, "")
        assert load_factors(output) == expected
    assert ended.out.splitlines() == [
        "window 256: 64 -> 256 (s = 4), rope_theta 10000, 8 lambdas from 1 to 4.1, n_hat 0, attention factor 1.1547",
        "note: attention factor 1.1547 (su); a table does not name one",
        f"{output}: imported from a table of 2 equal rows",
    ]
    shown = longrope("show", output)
    assert shown.code == 0
    assert "method: imported" in shown.out


def test_a_table_with_its_numbers(longrope: Run, table: Path, tmp_path: Path) -> None:
    numbers = ("--rope-theta", 5e5, "--original-length", "1k", "--target-length", "4k", "--n-hat", 8)
    assert longrope("import", table, *numbers, "--attention-factor", 1.25, "-o", tmp_path / "f.json").code == 0
    expected = RopeFactors(tuple(LONG), 5e5, 16, 1024, 4096, n_hat=8, attention_factor=1.25)
    assert load_factors(tmp_path / "f.json") == expected


def test_configs(longrope: Run, tmp_path: Path) -> None:
    lists = {"short_factor": [1.0] * 8, "long_factor": LONG, "original_max_position_embeddings": 64}
    folder, output = write_config(tmp_path / "model", {"type": "su", **lists}), tmp_path / "factors.json"
    ended = longrope("import", folder, "--output", output)
    assert (ended.code, ended.err) == (0, "")
    loaded = load_factors(output)
    assert isinstance(loaded, FactorSchedule)
    assert loaded.describe() == "64, 256"
    assert re.findall(r"^window (\w+): 64 -> ", ended.out, re.MULTILINE) == ["64", "256"]
    assert f"{output}: imported from a config of rope type longrope" in ended.out

    write_config(folder, {"rope_type": "dynamic", "factor": 2.0})
    assert longrope("import", folder / "config.json", "--target-length", 512, "--output", output).code == 0
    loaded = load_factors(output)
    assert isinstance(loaded, RopeFactors)
    assert loaded.target_length == 512


def test_a_warning_is_one_line(table: Path, tmp_path: Path) -> None:
    table.write_text(",".join(map(str, LONG[::-1])))
    command = [sys.executable, "-m", "longrope", "import", table, "--rope-theta", "10000", "--original-length", "64"]
    command += ["--target-length", "256", "--output", str(tmp_path / "factors.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        ran.stderr
        == "warning: table.csv: the lambdas are not monotone (lambda 1 is the first below the one before it)\n"
    )


def test_a_factor_file_that_falls_is_shown_with_one_line(longrope: Run, tmp_path: Path) -> None:
    path = tmp_path / "factors.json"
    RopeFactors(tuple(LONG[::-1]), 1e4, 16, 64, 256).save(path)
    ended = longrope("show", path)
    assert (ended.code, ended.err) == (0, f"warning: {path}: the lambdas are not monotone\n")


def test_mistakes(longrope: Run, table: Path, model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "factors.json"
    target = ("--target-length", 256)
    to = ("--output", output)
    assert "add --target-length" in refused(longrope, table, "--model", model_folder, *to)
    assert "add --model, or --rope-theta and --original-length" in refused(longrope, table, *target, *to)
    assert "add --model, or" in refused(longrope, table, "--rope-theta", 1e4, *target, *to)
    both = ("--model", model_folder, "--rope-theta", 1e4)
    assert "leave out one or the other" in refused(longrope, table, *both, *target, *to)
    wrong = ("--model", model_folder, "--attention-factor", "ntk")
    assert "attention factor 'ntk' is unknown" in refused(longrope, table, *wrong, *target, *to)
    assert "n_hat is -1" in refused(longrope, table, "--model", model_folder, "--n-hat", -1, *target, *to)
    numbers = ("--rope-theta", 0.5, "--original-length", 64)
    assert "rope_theta is 0.5" in refused(longrope, table, *numbers, *target, *to)
    assert "length 'far' is not" in refused(longrope, table, "--target-length", "far", *to)
    assert "--n-hat is for tables" in refused(longrope, model_folder, "--n-hat", 8, *to)
    assert "plain RoPE, so there are no factors" in refused(longrope, model_folder, *to)
    assert "does not exist; give a file" in refused(longrope, tmp_path / "none.csv", *to)
    own = ("--model", model_folder, *target, "--output", table)
    assert "is the source itself" in refused(longrope, table, *own)
    assert not output.exists()
