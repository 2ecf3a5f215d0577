"""A recipe as a run: what is done is not done again, what changed is, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_recipes import STAGES, START, Moments, Whole, carry_out, write_recipe
from tiny_search import write_documents
from transformers import AutoModelForCausalLM, AutoTokenizer

from longrope.cli.outcome import print_status
from longrope.data.documents import read_documents
from longrope.data.samples import draw_samples
from longrope.exceptions import DataError, RunExistsError
from longrope.export.card import put_results
from longrope.pipeline.dry_run import dry_run
from longrope.pipeline.inputs import stage_inputs
from longrope.pipeline.perform import is_there
from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.run import _stages_of, as_begun, extend
from longrope.pipeline.state import DONE, FAILED, RUNNING, WAITING, open_state
from longrope.rope.policy import FactorSchedule, load_factors
from longrope.runs.journal import read_journal

CHANGE = "readjust.algorithm.iterations=1"
CHANGED = ["readjust", "after", "export", "served"]


@pytest.fixture
def run(whole: Whole, tmp_path: Path) -> Path:
    """The finished run, in a folder that may be changed."""
    return shutil.copytree(whole.folder, tmp_path / "run")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file by its place."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_does_its_stages_in_their_order(whole: Whole) -> None:
    assert whole.seen.ran == list(STAGES)
    state = open_state(whole.folder)
    assert [stage.state for stage in state.stages.values()] == [DONE] * len(STAGES)
    assert state.finished is not None
    flattered = [note for note in whole.seen.notes if "measures documents that factors are searched on" in note]
    assert [note.partition(" ")[0] for note in flattered] == ["before", "after", "served"]
    schedule = load_factors(whole.folder / "export" / "longrope.json")
    assert isinstance(schedule, FactorSchedule)
    assert [window.max_length for window in schedule.windows] == [64, 128, 256]
    searched = load_factors(whole.folder / "search-256" / "factors.json")
    assert schedule.windows[-1].factors.lambdas == searched.lambdas
    assert (whole.folder / "export" / "recipe.yaml").read_text() == (whole.folder / "recipe.yaml").read_text()


def test_the_card_tells_of_the_model_that_the_recipe_began_with_and_of_the_results(whole: Whole) -> None:
    card = (whole.folder / "export" / "README.md").read_text()
    began = Path(read_recipe(whole.recipe).model.name)
    assert f"`{began.name}` with a context window of 256 tokens" in card
    assert "trained further by the recipe in [recipe.yaml](recipe.yaml)" in card
    assert "longrope extend recipe.yaml --output RUN" in card
    assert "unchanged" not in card
    results = card.partition("\n## Results\n")[2].partition("\n## Windows\n")[0]
    state = open_state(whole.folder)
    for name, stage in state.stages.items():
        assert f"| {name} | {stage.told} | " in results
    served = state.stages["served"].results["table"]
    figures = " | ".join(f"{row['perplexity']:.4g}" for row in served)
    assert f"| served | exported | hf | {figures} |" in results


def test_results_go_between_their_marks_and_nowhere_else(whole: Whole, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    written = (whole.folder / "export" / "README.md").read_text()
    edited = written.replace("## Windows\n", "## Results\n\nMine.\n\n## Windows\n")
    card.write_text(edited)
    put_results(tmp_path, "other results")
    changed = card.read_text()
    begin, end = "<!-- results of the run -->", "<!-- end of results -->"
    assert changed.partition(begin)[0] == edited.partition(begin)[0]
    assert changed.partition(end)[2] == edited.partition(end)[2]
    assert changed.partition(begin)[2].partition(end)[0] == "\n\nother results\n\n"
    before = card.stat().st_ino
    put_results(tmp_path, "other results")
    assert card.stat().st_ino == before  # not even written again
    for mine in (b"# Mine\n\n## Results\n", begin.encode(), b"caf\xe9"):
        card.write_bytes(mine)
        put_results(tmp_path, "other results")
        assert card.read_bytes() == mine
    card.unlink()
    put_results(tmp_path, "other results")
    assert not card.exists()


def test_a_folder_claims_no_results_of_what_came_after_it(whole: Whole) -> None:
    content = yaml.safe_load(whole.recipe.read_text())
    stages = content["stages"]
    again = {"export": {"name": "again"}}
    content["stages"] = [*stages[:4], again, *stages[4:]]
    changed = whole.folder.parent / "two-exports.yaml"
    changed.write_text(yaml.safe_dump(content))
    recipe = read_recipe(changed)
    names = [stage.name for stage in recipe.stages]
    assert _stages_of(recipe, 4) == names[:5]
    assert _stages_of(recipe, names.index("export")) == names


def test_the_exported_folder_measures_as_plain_transformers_computes_it(whole: Whole, documents_file: Path) -> None:
    folder = whole.folder / "export"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    documents = draw_samples(read_documents(documents_file), tokenizer, 256, 3, 0, 0).search
    rows = {row["length"]: row for row in open_state(whole.folder).stages["served"].results["table"]}
    assert set(rows) == {64, 128, 256}
    for length, row in rows.items():
        losses = []
        for document in documents:
            tokens = np.concatenate([document.tokens[:1], document.tokens[1 - length :]])  # <s>, and the end
            tokens = torch.from_numpy(tokens.astype("int64"))[None]
            with torch.no_grad():
                logits = model(tokens).logits[0, -64:-1]
            losses.append(torch.nn.functional.cross_entropy(logits.double(), tokens[0, -63:]))
        assert row["perplexity"] == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-5)


def test_the_same_call_again_does_nothing(whole: Whole, run: Path) -> None:
    before = tree(run)
    report, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == []
    headings = [note for note in seen.notes if note.startswith("[")]
    assert [note.rpartition(": ")[2].split(",")[0] for note in headings] == ["done before"] * len(STAGES)
    assert tree(run) == before
    assert report.exported == run / "export"


def test_a_changed_setting_does_again_what_depends_on_it_and_no_more(whole: Whole, run: Path) -> None:
    changed = read_recipe(whole.recipe, [CHANGE])
    _, seen = carry_out(changed, run)
    assert seen.ran == CHANGED
    said = seen.notes[: next(i for i, note in enumerate(seen.notes) if note.startswith("[1/"))]
    why = "is done again, for it was started with other inputs"
    assert f"readjust {why}: settings.algorithm.iterations: 1, was 2" in said
    assert [note.partition(f" {why}: ")[0] for note in said if why in note] == CHANGED
    assert read_journal(run / "readjust" / "window-64" / "evaluations.jsonl")[0]["iterations"] == 1
    assert yaml.safe_load((run / "recipe.yaml").read_text())["stages"][4]["readjust"]["algorithm"]["iterations"] == 1
    others = {stage: tree(run / stage) for stage in STAGES}

    _, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == []
    assert [note.partition(":")[0] for note in seen.notes if "comes back from replaced" in note] == CHANGED
    assert {stage: tree(run / stage) for stage in STAGES} == {stage: tree(whole.folder / stage) for stage in STAGES}

    _, seen = carry_out(changed, run)
    assert seen.ran == []
    assert {stage: tree(run / stage) for stage in STAGES} == others


def test_a_dry_run_says_what_becomes_of_every_stage(whole: Whole, run: Path) -> None:
    def told(*changes: str) -> list[str]:
        before, heard = tree(run), Moments()
        assert dry_run(read_recipe(whole.recipe, changes), run, heard) == []
        assert tree(run) == before
        return [note for note in heard.notes if not note.startswith("checking ")]

    kept = [f"{name} is done and kept" for name in STAGES]
    assert [note for note in told() if note in kept] == kept
    will = [note for note in told(CHANGE) if "is done" in note]
    assert will[:4] == kept[:4]
    assert [note.partition(" ")[0] for note in will[4:]] == CHANGED
    _, seen = carry_out(read_recipe(whole.recipe, [CHANGE]), run)
    assert [note for note in seen.notes if "is done again" in note] == will[4:]
    back = [note for note in told() if "gives way to what these inputs gave before" in note]
    assert [note.partition(" ")[0] for note in back] == CHANGED
    (run / "finetune-128" / "model" / "model.safetensors").unlink()
    shutil.rmtree(run / "before")
    lost = told(CHANGE)
    for name in ("before", "finetune-128"):
        assert f"{name} was done, but what it made is gone; it is done again" in lost
    state = open_state(run)
    state.stages["search-256"].state = RUNNING
    state.save(run)
    assert "search-256 was begun and is gone on with" in told(CHANGE)


def test_results_that_come_back_are_not_lost_where_that_is_interrupted(whole: Whole, run: Path, tmp_path: Path) -> None:
    class Stopped(BaseException):
        """The process is gone, as far as the run can tell."""

    class Stopping(Moments):
        def strike(self) -> None:
            raise Stopped

    recipe = read_recipe(whole.recipe)
    carry_out(read_recipe(whole.recipe, [CHANGE]), run)
    _, seen = carry_out(recipe, shutil.copytree(run, tmp_path / "calm"))
    moments = seen.moments[START]
    assert moments.count("rename") == 2 * len(CHANGED)
    for moment in range(1, len(moments) + 1):
        folder = shutil.copytree(run, tmp_path / str(moment))
        with pytest.raises(Stopped):
            carry_out(recipe, folder, Stopping(START, moment))
        _, seen = carry_out(recipe, folder)
        assert seen.ran == [], f"stopped before moment {moment}, {moments[moment - 1]}"
        assert {each: tree(folder / each) for each in STAGES} == {each: tree(whole.folder / each) for each in STAGES}


def test_a_stage_that_left_the_recipe_comes_back_with_its_results(whole: Whole, run: Path) -> None:
    content = yaml.safe_load(whole.recipe.read_text())
    content["stages"] = [stage for stage in content["stages"] if stage != content["stages"][5]]
    shorter = run.parent / "shorter.yaml"
    shorter.write_text(yaml.safe_dump(content))
    page = run / "report" / "report.html"
    page.write_text("of all stages")
    _, seen = carry_out(read_recipe(shorter), run)
    assert seen.ran == []
    assert not (run / "after").exists()
    assert page.read_text() != "of all stages"
    _, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == []
    assert tree(run / "after") == tree(whole.folder / "after")


def renamed(whole: Whole, path: Path, names: dict[str, str]) -> Path:
    """The recipe with other names of its stages."""
    content = yaml.safe_load(whole.recipe.read_text())
    for name, item in zip(STAGES, content["stages"], strict=True):
        ((kind, options),) = item.items()
        item[kind] = {**(options or {}), "name": names.get(name, name)}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("names", [{"search-256": "far"}, {"before": "after", "after": "before"}])
def test_a_stage_keeps_its_results_under_another_name(whole: Whole, run: Path, names: dict[str, str]) -> None:
    _, seen = carry_out(read_recipe(renamed(whole, run.parent / "renamed.yaml", names)), run)
    assert seen.ran == []
    card = (run / "export" / "README.md").read_text()
    for name in STAGES:
        now, before = tree(run / names.get(name, name)), tree(whole.folder / name)
        if name == "export":  # whose card names the stages
            assert now.pop("README.md") != before.pop("README.md")
        assert now == before
        assert f"\n| {names.get(name, name)} | " in card
    state = open_state(run)
    assert list(state.stages) == [names.get(name, name) for name in STAGES]
    assert [stage.state for stage in state.stages.values()] == [DONE] * len(STAGES)
    _, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == []
    assert {stage: tree(run / stage) for stage in STAGES} == {stage: tree(whole.folder / stage) for stage in STAGES}


def test_what_was_put_aside_right_before_a_kill_comes_back_with_the_old_recipe(whole: Whole, run: Path) -> None:
    class Stopped(BaseException):
        """The process is gone, as far as the run can tell."""

    class Stopping(Moments):
        def strike(self) -> None:
            raise Stopped

    with pytest.raises(Stopped):  # between the folder's move and the state that tells of it
        carry_out(read_recipe(whole.recipe, [CHANGE]), run, Stopping(START, 3))
    assert not (run / "readjust").exists()
    assert open_state(run).stages["readjust"].state == DONE
    _, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == []
    assert {stage: tree(run / stage) for stage in STAGES} == {stage: tree(whole.folder / stage) for stage in STAGES}


def test_a_stage_whose_folder_is_gone_is_done_again(whole: Whole, run: Path) -> None:
    shutil.rmtree(run / "search-256")
    _, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == ["search-256"]
    assert "search-256 was done, but what it made is gone; it is done again" in seen.notes
    found, before = (load_factors(folder / "search-256" / "factors.json") for folder in (run, whole.folder))
    assert found.lambdas == before.lambdas


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json"])
def test_a_model_folder_that_has_lost_a_part_is_made_again(whole: Whole, run: Path, gone: str) -> None:
    places = {"finetune-128": "finetune-128/model", "export": "export"}
    for place in places.values():
        (run / place / gone).unlink()
    _, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == list(places)
    for stage, place in places.items():
        assert f"{stage} was done, but what it made is gone; it is done again" in seen.notes
        found, before = tree(run / place), tree(whole.folder / place)
        assert found.keys() == before.keys()
        assert found["model.safetensors"] == before["model.safetensors"]


def test_an_export_without_weights_is_whole(whole: Whole, tmp_path: Path) -> None:
    for config_only in (True, False):
        changed = read_recipe(whole.recipe, [f"export.config_only={str(config_only).lower()}"])
        stage = next(stage for stage in changed.stages if stage.name == "export")
        folder = tmp_path / str(config_only)
        assert not is_there(stage, folder)
        folder.mkdir()
        shutil.copy(whole.folder / "export" / "config.json", folder)
        assert is_there(stage, folder) == config_only


def test_what_was_begun_on_other_devices_is_begun_anew_and_kept(whole: Whole, run: Path) -> None:
    state = open_state(run)
    began = {
        "before": 'device: then "cuda", now "cpu"',
        "finetune-128": "zero 3, not 0",
        "search-256": 'device: then "cuda", now "cpu"',
        "readjust": 'device: then "cuda", now "cpu"',
    }
    for name in began:
        state.stages[name].state = RUNNING
        for file in [*run.glob(f"{name}/evaluation*.jsonl"), *run.glob(f"{name}/*/evaluations.jsonl")]:
            file.write_text(file.read_text().replace('"device": "cpu"', '"device": "cuda"', 1))
    record = run / "finetune-128" / "run.json"
    record.write_text(record.read_text().replace('"zero": 0', '"zero": 3'))
    state.save(run)
    there = {name: tree(run / name) for name in began}
    _, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == list(began)
    for name, why in began.items():
        place = f"replaced/{name}-unfinished"
        assert (
            f"{name} is begun anew, for what was begun cannot be gone on with ({why}); it lies in {place}" in seen.notes
        )
        assert {"lock": b"", **tree(run / place)} == {"lock": b"", **there[name]}
    assert load_factors(run / "readjust" / "factors.json") == load_factors(whole.folder / "readjust" / "factors.json")
    weights = "finetune-128/model/model.safetensors"
    assert (run / weights).read_bytes() == (whole.folder / weights).read_bytes()
    _, seen = carry_out(read_recipe(whole.recipe), run)
    assert seen.ran == []


def test_a_second_process_is_refused_while_the_first_one_runs(whole: Whole, run: Path) -> None:
    recipe, refused = read_recipe(whole.recipe), []

    class Joined(Moments):
        """Another process wants the folder in the middle of a stage."""

        def begin(self, description: str, total: int | None) -> None:
            before = tree(run)
            with pytest.raises(RunExistsError, match="is being written by another process") as caught:
                extend(recipe, run)
            refused.append(caught.value)
            assert tree(run) == before

    shutil.rmtree(run / "after")
    carry_out(recipe, run, Joined())
    assert len(refused) == 1
    carry_out(recipe, run)  # and not any more


def test_a_folder_with_something_else_is_refused_and_left_alone(whole: Whole, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(RunExistsError, match="is not empty and holds no run of a recipe"):
        extend(read_recipe(whole.recipe), folder)
    with pytest.raises(RunExistsError, match="is a file"):
        extend(read_recipe(whole.recipe), folder / "thesis.txt")
    assert tree(folder) == {"thesis.txt": b"years of work"}


def test_a_killed_stage_has_the_time_until_it_last_wrote(whole: Whole, run: Path) -> None:
    state = open_state(run)
    killed, moment = state.stages["after"], 1.6e9
    killed.state, killed.started, killed.seconds = RUNNING, moment, 10.0
    state.save(run)
    for path in (run / "after").rglob("*"):
        os.utime(path, (moment + 100, moment + 100))
    carry_out(read_recipe(whole.recipe), run)
    assert 110 <= open_state(run).stages["after"].seconds < 170


def test_what_stopped_a_stage_is_said_where_the_disk_is_too_full_to_note_it(
    whole: Whole, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    class Full(Moments):
        def begin(self, description: str, total: int | None) -> None:
            monkeypatch.setattr(os, "fsync", full)
            raise Stopped

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.rmtree(run / "after")
    recipe = read_recipe(whole.recipe)
    with pytest.raises(Stopped):
        carry_out(recipe, run, Full())
    monkeypatch.undo()
    assert open_state(run).stages["after"].state == RUNNING  # the last that could be written
    _, seen = carry_out(recipe, run)
    assert seen.ran == ["after"]


def test_a_run_stays_at_the_commit_of_a_hub_model_that_it_began_with(
    whole: Whole, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots, asked = tmp_path / "snapshots", []

    def download(name: str, *, revision: str | None, **options: object) -> str:
        asked.append((name, revision))
        return str(snapshots / (revision or sorted(path.name for path in snapshots.iterdir())[-1]))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    shutil.copytree(model_folder, snapshots / "a1")
    text = whole.recipe.read_text().replace(f"model: {model_folder}", "model: someone/tiny")
    (tmp_path / "hub.yaml").write_text(text)
    recipe = read_recipe(tmp_path / "hub.yaml", ["finetune-128.steps=1", "finetune-128.warmup=0"])
    carry_out(recipe, tmp_path / "hub")
    assert set(asked) == {("someone/tiny", None), ("someone/tiny", "a1")}
    assert yaml.safe_load((tmp_path / "hub" / "recipe.yaml").read_text())["model"]["revision"] == "a1"

    shutil.copytree(model_folder, snapshots / "b2")
    (snapshots / "b2" / "README.md").write_text("What else is to be known of the model.")
    asked.clear()
    _, seen = carry_out(recipe, tmp_path / "hub")
    assert seen.ran == []
    assert set(asked) == {("someone/tiny", "a1")}
    models = [as_begun(recipe, state) for state in (open_state(tmp_path / "hub"), None)]
    assert [stage_inputs(each)["search-128"]["model"] for each in models] == ["someone/tiny@a1", "someone/tiny@b2"]


def test_ctrl_c_interrupts_a_stage_and_does_not_make_it_fail(whole: Whole, run: Path) -> None:
    class Interrupted(Moments):
        def begin(self, description: str, total: int | None) -> None:
            raise KeyboardInterrupt

    shutil.rmtree(run / "after")
    recipe = read_recipe(whole.recipe)
    with pytest.raises(KeyboardInterrupt):
        carry_out(recipe, run, Interrupted())
    state = open_state(run)
    stage = state.stages["after"]
    assert (stage.state, stage.error, stage.started) == (RUNNING, None, None)
    assert state.finished is None
    assert not (run / "report" / "report.html").exists()
    assert 0 < stage.seconds < 60
    _, seen = carry_out(recipe, run)
    assert seen.ran == ["after"]
    assert open_state(run).stages["after"].seconds > stage.seconds


def test_a_stage_that_fails_says_why_and_is_gone_on_with_when_that_is_mended(
    model_folder: Path, documents_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = write_documents(tmp_path / "short.jsonl", words=20)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        model_folder,
        documents_file,
        f"""\
model: MODEL
execution: {{workers: 1}}
stages:
  - evaluate: {{suite: perplexity, model: original, source: DOCUMENTS, samples: 2, lengths: [64]}}
  - search:
      target_length: 128
      data: {{source: {short}, samples: 2, held_out: 0}}
      algorithm: {{algorithm: paper, population: 4, mutations: 1, crossovers: 1, iterations: 1, parents: 2, n_hat: [0]}}
  - export:
""",
    )
    run = tmp_path / "run"
    with pytest.raises(DataError, match="128 tokens") as caught:
        carry_out(read_recipe(recipe), run)
    state = open_state(run)
    assert [stage.state for stage in state.stages.values()] == [DONE, FAILED, WAITING]
    assert state.stages["search-128"].error == str(caught.value)
    assert state.finished is None
    capsys.readouterr()
    print_status(state)
    told = capsys.readouterr().out
    assert "failed" in told
    assert str(caught.value)[:20] in told

    write_documents(short)
    _, seen = carry_out(read_recipe(recipe), run)
    assert seen.ran == ["search-128", "export"]
    state = open_state(run)
    assert [stage.state for stage in state.stages.values()] == [DONE] * 3
    assert state.stages["search-128"].error is None
