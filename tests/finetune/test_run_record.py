from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import begin

from longrope.exceptions import OtherRunError, RunExistsError
from longrope.finetune.checkpoints import Checkpoint, seal
from longrope.finetune.run import with_zero_as_begun
from longrope.finetune.run_record import RunRecord, lock_of, open_run
from longrope.finetune.settings import FinetuneSettings, HeldOutSettings, MemorySettings


@pytest.fixture
def settings(tmp_path: Path) -> FinetuneSettings:
    """Settings of a run in a folder that is not there yet."""
    return FinetuneSettings(model="m", factors="f", data="d", output=str(tmp_path / "run"), seq_length=128)


def test_a_resumed_run_reports_and_saves_as_it_is_told_now(settings: FinetuneSettings, tmp_path: Path) -> None:
    first = begin(settings, "weights")
    now = replace(settings, save_steps=7, report_to=("tensorboard",), held_out=HeldOutSettings(source="books"))
    now = replace(now, memory=MemorySettings(offload_activations=True, tile_mlp=32))  # after it ran out of memory
    again = begin(now, "weights", resume=True)
    assert again == RunRecord.read(tmp_path / "run") == RunRecord(first.run, "weights", now)


def test_a_run_whose_folder_was_moved_goes_on_there(settings: FinetuneSettings, tmp_path: Path) -> None:
    first = begin(settings, "weights")
    (tmp_path / "run").rename(tmp_path / "moved")
    begin(replace(settings, output=str(tmp_path / "moved")), "weights", resume=True)
    record = RunRecord.read(tmp_path / "moved")
    assert record.run == first.run
    assert record.settings.output == str(tmp_path / "moved")


def test_model_and_data_may_lie_elsewhere(settings: FinetuneSettings) -> None:
    begin(settings, "weights")
    moved = replace(settings, model="elsewhere/m", data="elsewhere/d")
    assert begin(moved, "weights", resume=True).settings == moved


def test_a_record_is_kept_when_the_run_is_refused(settings: FinetuneSettings, tmp_path: Path) -> None:
    begin(settings, "weights")
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(OtherRunError, match="started with steps 400, not 10"):
        begin(replace(settings, steps=10, warmup=0), "weights", resume=True)
    with pytest.raises(OtherRunError, match="other weights or factors"):
        begin(settings, "others", resume=True)
    with pytest.raises(RunExistsError, match="by --resume"):
        begin(settings, "weights")
    assert (tmp_path / "run" / "run.json").read_text() == before


@pytest.mark.parametrize(("begun", "trained", "asked", "zero"), [
    (0, True, None, 0),
    (0, False, None, 3),
    (3, True, None, 3),
    (0, True, 2, 2),
])  # fmt: skip
def test_what_was_trained_without_deepspeed_goes_on_so_with_more_processes(
    settings: FinetuneSettings, begun: int, trained: bool, asked: int | None, zero: int
) -> None:
    assert with_zero_as_begun(settings) == settings
    record = begin(replace(settings, zero=begun), "weights")
    checkpoint = Path(settings.output, "checkpoints", "checkpoint-5")
    checkpoint.mkdir(parents=True)
    if trained:
        seal(Checkpoint(checkpoint, 5, {}), record.run, 1)
    assert with_zero_as_begun(replace(settings, zero=asked)).on(2).zero == zero


def test_a_run_that_is_going_on_is_not_resumed_beside_it(settings: FinetuneSettings, tmp_path: Path) -> None:
    lock = lock_of(settings)
    open_run(settings, "weights", {}, False, lock)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(RunExistsError, match="run is being written by another process"):
        begin(replace(settings, save_steps=7), "weights", resume=True)
    assert (tmp_path / "run" / "run.json").read_text() == before
    lock.release()
    begin(replace(settings, save_steps=7), "weights", resume=True)
