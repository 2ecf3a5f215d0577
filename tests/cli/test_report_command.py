"""`longrope report` from the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longrope.search.search import SearchReport

pytest.importorskip("matplotlib", reason="reports need matplotlib")

Run = Callable[..., Any]


def test_the_page_lies_in_the_runs_folder_or_where_it_is_told(
    longrope: Run, searched: SearchReport, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(searched.folder / "factors.json", run)
    ended = longrope("report", run)
    assert ended.code == 0, ended.err
    assert f"report: {run / 'report' / 'report.html'}" in ended.out
    assert (run / "report" / "plots" / "search-factors.png").read_bytes().startswith(b"\x89PNG")

    again = longrope("report", run, run, "--output", tmp_path / "both")
    assert again.code == 0, again.err
    assert (tmp_path / "both" / "plots" / "search-2-factors.svg").is_file()


def test_what_is_no_run_is_said_in_one_line(longrope: Run, tmp_path: Path) -> None:
    ended = longrope("report", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    kinds = "a search, a fine-tuning run or an evaluation"
    assert ended.err == f"error: {tmp_path} holds no run; give the folder of {kinds} (its --output)\n"
