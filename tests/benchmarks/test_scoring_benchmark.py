"""benchmarks/scoring.py measures nothing twice, and goes on after what fails, was cut off or takes too long."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts_by_path import checkout_script, load_script

SCRIPT = checkout_script("benchmarks/scoring.py")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


def run(output: Path, lengths: str, *options: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What stands under seconds for every length, and the records afterwards; from a checkout that is not installed."""
    given = ("lengths", "--model", "vocabulary", "--device", "cpu", "--lengths", lengths, "--output", str(output))
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    # Without the site module nothing is installed that is a link to its sources, as longrope is here.
    done = subprocess.run(
        [sys.executable, "-S", str(SCRIPT), *given, *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    lines = [line for line in output.read_text().splitlines() if line.endswith("}")]
    return {row[2]: row[3] for row in rows[2:]}, [json.loads(line) for line in lines]


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    output = tmp_path / "new" / "scoring.jsonl"
    shown, records = run(output, "256")
    assert [record["length"] for record in records] == [256]
    assert records[0]["device_name"]
    assert records[0]["torch"]
    assert records[0]["peak"] > 0

    with output.open("a") as file:
        file.write('{"model": "vocabulary", "layers": nu')  # as a killed process leaves it
    again, more = run(output, "256,512")
    assert [record["length"] for record in more] == [256, 512]
    assert more[0] == records[0]
    assert again["256"] == shown["256"]

    written = output.read_text()
    last, _ = run(output, "256,512,1k", "--budget", "0.001")
    assert output.read_text() == written
    assert (last["256"], last["512"]) == (again["256"], again["512"])
    assert last["1k"].startswith("skipped: ")


def test_what_failed_is_written_down_and_tried_again_unless_memory_ran_out(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [
        (1, "", "Traceback\nRuntimeError: unknown error\n\n"),
        (-9, "", ""),
        (0, json.dumps({"failed": "out of memory", "peak": 1.0}), ""),
    ]

    def ended(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, *ends.pop(0))

    monkeypatch.setattr(script.subprocess, "run", ended)
    args = argparse.Namespace(dtype="float32", device="cpu", device_name="a processor", threads=1)
    what = script.asked(args, "layer by layer", "vocabulary", None, 512)
    output = tmp_path / "scoring.jsonl"
    told = [script.apart(script.Records(str(output)), what)["failed"] for _ in range(4)]
    assert told == ["RuntimeError: unknown error", "killed by signal 9", "out of memory", "out of memory"]
    assert not ends
    assert [json.loads(line)["failed"] for line in output.read_text().splitlines()] == told[:3]


def test_time_is_foreseen_from_the_best_rate_of_the_same_device(script: ModuleType) -> None:
    def record(device_name: str, seconds: float) -> dict[str, Any]:
        args = argparse.Namespace(dtype="bfloat16", device="cuda", device_name=device_name, threads=1)
        what = script.asked(args, "layer by layer", "llama-2-7b", 32, 131072)
        return {**what, "flops": 1e15, "seconds": seconds, "wall": seconds + 5}

    records = script.Records(None)
    assert records.foresee(record("this", 0), 3e15) == script.START_SECONDS
    for each in (record("this", 10), record("this", 20), record("another", 1)):
        records.add(each)
    assert records.foresee(record("this", 0), 3e15) == pytest.approx(5 + 30)
