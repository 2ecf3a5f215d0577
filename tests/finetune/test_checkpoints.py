from pathlib import Path

import pytest

from longrope.exceptions import OtherRunError, RunExistsError
from longrope.finetune.checkpoints import Checkpoint, newest_checkpoint, remove_old, remove_torn, seal


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Complete ones of steps 2, 10 and 8; one of step 12 that was interrupted; something else."""
    for step in (2, 10, 8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").touch()
        if step != 12:
            seal(Checkpoint(folder, step, {"yielded": step}), "run", 2)
    (tmp_path / "checkpoint-notes").mkdir()
    return tmp_path


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_complete_checkpoint_counts(checkpoints: Path) -> None:
    newest = newest_checkpoint(checkpoints, "run", 2)
    assert newest == Checkpoint(checkpoints / "checkpoint-10", 10, {"yielded": 10})


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent", "run") is None


def test_a_checkpoint_of_another_run_is_refused(checkpoints: Path) -> None:
    with pytest.raises(RunExistsError, match="belongs to another run"):
        newest_checkpoint(checkpoints, "other")


def test_a_checkpoint_in_other_parts_is_refused(checkpoints: Path) -> None:
    with pytest.raises(OtherRunError, match=r"parts of 2 processes.*resume with 2"):
        newest_checkpoint(checkpoints, "run", 4)
    assert newest_checkpoint(checkpoints, "run", None) is not None


def test_old_and_interrupted_checkpoints_go(checkpoints: Path) -> None:
    remove_torn(checkpoints)
    assert steps(checkpoints) == ["checkpoint-10", "checkpoint-2", "checkpoint-8", "checkpoint-notes"]
    remove_old(checkpoints, 2)
    assert steps(checkpoints) == ["checkpoint-10", "checkpoint-8", "checkpoint-notes"]


def test_an_interrupted_checkpoint_takes_no_place_of_a_complete_one(checkpoints: Path) -> None:
    remove_old(checkpoints, 2)
    assert steps(checkpoints) == ["checkpoint-10", "checkpoint-8", "checkpoint-notes"]
