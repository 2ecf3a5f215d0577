"""A section says what the folder of its run holds and what it does not, and refuses what it cannot read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_search import coarse_to_fine, eager_races, in_process, search_in_process, settings

from longrope.exceptions import InvalidInputError
from longrope.report.content import Plot, shown
from longrope.report.evaluation_run import open_evaluation
from longrope.report.perplexity_figures import paired
from longrope.report.retrieval_figures import heatmaps
from longrope.report.runs import sections_of
from longrope.report.search_progress_figures import convergence_plot, gain_plot
from longrope.report.search_result_figures import position_plot
from longrope.report.search_run import block_tokens, open_search
from longrope.report.search_section import search_section
from longrope.report.suite_figures import metric_plots
from longrope.report.write import write_report
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.search.candidate import Candidate
from longrope.search.comparison import paired_difference
from longrope.search.evaluation import Task
from longrope.search.readjust import ReadjustSettings, readjust
from longrope.search.settings import AlgorithmSettings, DataSettings


def test_documents_are_compared_with_themselves(perplexity_run: Path) -> None:
    run = open_evaluation(perplexity_run)
    found = paired(run)
    assert found is not None
    reference, differences = found
    other = next(method for method in run.methods if method != reference)
    own, base = (
        run.records[(run.records["method"] == method) & (run.records["length"] == 256)].sort_values("item")
        for method in (other, reference)
    )
    expected = (own["nll"].to_numpy() - base["nll"].to_numpy()).sum() / own["tokens"].sum()
    mean, interval = differences[other, 256]
    assert mean == pytest.approx(expected)
    assert mean > 0
    assert interval.low <= mean <= interval.high


def test_methods_of_a_search_are_found_in_its_journal(search_run: Path) -> None:
    run = open_search(search_run)
    assert len(run.candidates) == 18
    assert {method.name for method in run.rivals} == {"none", "pi", "ntk", "dynamic-ntk", "yarn"}
    for method in run.methods:
        assert method.candidate is not None
        held_out = run.result(method.candidate).held_out(512)
        assert held_out == pytest.approx(method.held_out[512])
        blocks = run.blocks(method.candidate)
        assert blocks is not None
        assert math.exp(blocks.sum() / (3 * block_tokens(512).sum())) == pytest.approx(held_out)
    assert block_tokens(512).tolist() == [255, 256]
    assert block_tokens(600).tolist() == [255, 256, 88]


def test_candidates_that_were_dropped_are_not_among_those_that_failed(
    model_folder: Path, documents_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager_races(monkeypatch)
    data = DataSettings(source=str(documents_file), samples=4, held_out=0)
    chosen = coarse_to_fine("genetic", max_evaluations=31)
    asked: list[Candidate] = []

    def fails(task: Task) -> str | None:
        if task.candidate not in asked:
            asked.append(task.candidate)
        return "too hot" if len(asked) == 6 else None

    search_in_process(settings(model_folder, documents_file, tmp_path / "run", 128, chosen, data=data), fails)
    run = open_search(tmp_path / "run")
    scores = [value for _, value in run.candidates]
    dropped = sum(math.isnan(value) for value in scores)
    assert (scores.count(math.inf), len(scores)) == (1, 31)
    assert 3 < dropped < 28
    plot = convergence_plot(run)
    assert plot is not None
    assert " 1 candidates failed." in plot.caption
    assert f" {dropped} candidates were clearly behind" in plot.caption


def test_a_needle_search_shows_no_perplexity_of_what_did_not_count(search_run: Path, tmp_path: Path) -> None:
    run = open_search(search_run)
    assert position_plot(run) is not None
    data = {**run.provenance["data"], "objective": "needle"}
    folder = shutil.copytree(search_run, tmp_path / "needle")
    run.factors.replace(provenance={**run.provenance, "data": data}).save(folder / "factors.json")
    needle = open_search(folder)
    assert position_plot(needle) is None
    assert any("that of the answers, not of all" in finding for finding in search_section(needle).findings)


def test_a_search_by_the_last_tokens_says_so(search_run: Path, tmp_path: Path) -> None:
    run = open_search(search_run)
    folder = shutil.copytree(search_run, tmp_path / "last")
    data = {**run.provenance["data"], "last": 20}
    run.factors.replace(provenance={**run.provenance, "data": data}).save(folder / "factors.json")
    last = open_search(folder)
    assert position_plot(last) is None
    assert any("that of the last 20 tokens, not of all" in finding for finding in search_section(last).findings)
    assert not any("not of all tokens" in finding for finding in search_section(run).findings)


def test_the_gain_of_a_search_is_that_on_search_samples_and_on_held_out_documents(search_run: Path) -> None:
    run = open_search(search_run)
    plot = gain_plot(run)
    assert plot is not None
    assert run.reference is not None
    assert run.searched is not None
    count, searched, held_out, _ = plot.table.rows[-1]
    best = min(range(18), key=lambda index: run.candidates[index][1])
    assert count == best + 1
    assert searched == pytest.approx(math.log(run.reference.search / run.candidates[best][1]))
    difference = paired_difference(run.result(run.reference.candidate), run.result(run.searched.candidate), 512)
    assert held_out == pytest.approx(difference.mean)


def test_what_is_not_there_is_said(search_run: Path, tmp_path: Path) -> None:
    (tmp_path / "factors.json").write_bytes((search_run / "factors.json").read_bytes())
    (section,) = sections_of(tmp_path)
    assert {plot.name for plot in section.plots} == {"held-out", "factors", "convergence"}
    assert "journal (evaluations.jsonl) is not there" in section.missing[0]
    assert "yarn" in next(plot for plot in section.plots if plot.name == "factors").table.columns


def test_a_readjustment_has_a_section_for_each_window(model_folder: Path, documents_file: Path, tmp_path: Path) -> None:
    yarn(RopeFactors.identity(10000.0, 16, 64), 1024).save(tmp_path / "long.json")
    sizes = {
        "algorithm": "paper",
        "population": 4,
        "mutations": 1,
        "crossovers": 1,
        "iterations": 1,
        "parents": 2,
        "n_hat": (0, 4),
    }
    given = ReadjustSettings(
        model=str(model_folder),
        output=str(tmp_path / "run"),
        windows=(32, 48),
        factors=str(tmp_path / "long.json"),
        data=DataSettings(source=str(documents_file), samples=1, held_out=2),
        algorithm=AlgorithmSettings(attention_factor="present", **sizes),
    )
    with in_process():
        readjust(given)
    sections = sections_of(tmp_path / "run")
    assert [section.title for section in sections] == ["model, window 32", "model, window 48"]
    for section, window in zip(sections, ("32", "48"), strict=True):
        assert {"factors", "convergence", "difference", "gain", "n-hat"} <= {plot.name for plot in section.plots}
        assert section.command is not None
        assert f"readjust {model_folder}" in section.command
        assert f"--windows {window} " in section.command
        assert "--attention-factor 1.277" in section.command


def test_cells_of_a_heatmap_hold_every_trial(passkey_run: Path, tmp_path: Path) -> None:
    run = open_evaluation(passkey_run)
    plots = heatmaps(run)
    assert [plot.name for plot in plots] == ["depth-none", "depth-pi", "depth-longrope"]
    cells = [cell for row in plots[0].table.rows for cell in row[1:] if cell is not None]
    assert len(plots[0].table.rows) == 10
    assert sum(int(cell.partition(" of ")[2]) for cell in cells) == 4
    assert [row[0] for row in plots[0].table.rows][:2] == ["0 to 10%", "10 to 20%"]

    run.record["depths"] = [0.0, 0.5, 1.0]  # as a needle's, in whose rows every depth has its own
    rows = heatmaps(run)[0].table.rows
    assert [row[0] for row in rows] == ["0%", "50%", "100%"]
    assert sum(int(cell.partition(" of ")[2]) for row in rows for cell in row[1:] if cell is not None) == 4


def test_a_fine_tuning_run_that_goes_on_says_so(finetune_run: Path, tmp_path: Path) -> None:
    (section,) = sections_of(finetune_run)
    assert section.findings[0] == "Held-out perplexity at 64: 9.000 before, 9.500 after (+5.6%)."
    assert {plot.name for plot in section.plots} == {"held-out", "loss", "lr", "speed", "memory"}
    shutil.copytree(finetune_run, tmp_path / "run")
    lines = (finetune_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:7]))
    (tmp_path / "run" / "held_out.json").unlink()
    (section,) = sections_of(tmp_path / "run")
    assert section.findings[0].startswith("This run is not done: step 7 of 80")
    assert section.missing == ("Held-out perplexity before and after training: n/a, not measured.",)


def test_any_suite_has_a_figure_for_each_measure(tmp_path: Path) -> None:
    rows = [
        {"method": method, "length": length, "rouge1": 0.3, "low": 0.2, "high": 0.4, "rougeL": None, "documents": 3}
        for method in ("none", "yarn")
        for length in (1024, 2048)
    ]
    record = {"suite": "summarisation", "results": rows, "failures": {}}
    (tmp_path / "results.json").write_text(json.dumps(record))
    pd.DataFrame([{"method": "none", "item": "a", "length": 1024}]).to_csv(tmp_path / "records.csv", index=False)
    plots = metric_plots(open_evaluation(tmp_path))
    assert [plot.name for plot in plots] == ["rouge1"]
    assert plots[0].table.rows[0] == ("none", "1k", 0.3, 0.2, 0.4)
    assert [shown(value) for value in sections_of(tmp_path)[0].tables[0].rows[0][5:]] == ["n/a", "3"]


def plots_of(rows: list[dict[str, Any]], folder: Path) -> list[Plot]:
    """Of an evaluation with this table."""
    (folder / "results.json").write_text(json.dumps({"suite": "any", "results": rows, "failures": {}}))
    pd.DataFrame([{"method": "none", "item": "a", "length": 1024}]).to_csv(folder / "records.csv", index=False)
    return metric_plots(open_evaluation(folder))


def test_tasks_have_a_figure_each(tmp_path: Path) -> None:
    found = {"value": 0.25, "error": 0.1, "samples": 9}
    rows = [
        {"method": method, "length": 512, "task": task, "metric": "acc", **found}
        for method in ("none", "yarn")
        for task in ("arc", "mmlu")
    ]
    plots = plots_of(rows, tmp_path)
    assert [(plot.name, plot.title) for plot in plots] == [
        ("value-arc-acc", "arc, acc"),
        ("value-mmlu-acc", "mmlu, acc"),
    ]
    assert plots[1].table.rows[1] == ("yarn", "512", 0.25, pytest.approx(0.05), pytest.approx(0.45))


def test_positions_are_drawn_for_each_number_of_documents(tmp_path: Path) -> None:
    rows = [
        {
            "method": "none",
            "documents": documents,
            "position": position,
            "em": position / 2,
            "em_error": 0.1,
            "trials": 4,
        }
        for documents in (20, 30)
        for position in (0.0, 0.5, 1.0)
    ]
    plots = plots_of(rows, tmp_path)
    assert [plot.title for plot in plots] == ["em, documents 20", "em, documents 30"]
    assert [row[1] for row in plots[0].table.rows] == ["0", "0.5", "1"]


def test_methods_alone_are_bars(tmp_path: Path) -> None:
    rows = [
        {"method": method, "rougeL": value, "documents": 3} for method, value in (("none", 0.2), ("yarn", math.nan))
    ]
    (plot,) = plots_of([{**row, "rougeL": None if math.isnan(row["rougeL"]) else 0.2} for row in rows], tmp_path)
    assert plot.table.rows == (("none", 0.2),)
    assert sections_of(tmp_path)[0].tables[0].columns == ("method", "rougeL", "documents")


def test_bad_input_is_refused_in_one_line(
    perplexity_run: Path, search_run: Path, finetune_run: Path, tmp_path: Path
) -> None:
    def refused(*runs: Path, output: Path | None = None) -> str:
        with pytest.raises(InvalidInputError) as error:
            write_report(runs, output)
        assert "\n" not in str(error.value)
        return str(error.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no run; give the folder of a search" in refused(empty)
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "is a file; give the folder" in refused(perplexity_run / "results.csv")
    assert "say by --output" in refused(perplexity_run, search_run)
    assert "is a file; give a folder" in refused(perplexity_run, output=perplexity_run / "results.csv")

    for source, lost in ((perplexity_run, "results.json"), (search_run, "factors.json")):
        going_on = tmp_path / source.name
        shutil.copytree(source, going_on)
        (going_on / lost).unlink()
        assert "it is still running, or was stopped; wait for it, or go on with it by --resume" in refused(going_on)
    starting = tmp_path / "starting"
    shutil.copytree(finetune_run, starting)
    (starting / "metrics.jsonl").unlink()
    assert "has not logged a step" in refused(starting)

    (tmp_path / "perplexity" / "results.json").write_text('{"suite": "perplexity", "results": [')
    assert "results.json cannot be read" in refused(tmp_path / "perplexity")
    shutil.copy(search_run / "factors.json", tmp_path / "search" / "factors.json")
    broken = json.loads((search_run / "factors.json").read_text())
    broken["provenance"]["results"]["methods"] = [{"method": 3}]
    (tmp_path / "search" / "factors.json").write_text(json.dumps(broken))
    assert "written by another version" in refused(tmp_path / "search")
    assert not list(empty.iterdir())
