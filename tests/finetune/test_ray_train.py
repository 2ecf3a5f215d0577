"""What a worker of Ray Train does when the user got something wrong; whole runs are in test_distributed_runs.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrope.exceptions import DataError, InvalidInputError
from longrope.finetune import worker
from longrope.finetune.failure import raise_failure
from longrope.finetune.ray_train import _work


def test_a_worker_that_cannot_go_on_leaves_the_others_no_reason_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def fails(folder: Path, device: str) -> None:
        attempts.append(folder)
        raise DataError("this node does not see the data")

    monkeypatch.setattr(worker, "train", fails)
    config = {"folder": str(tmp_path), "device": "cpu"}
    with pytest.raises(DataError):
        _work(config)
    with pytest.raises(InvalidInputError, match="does not see the data"):  # started anew: at once
        _work(config)
    assert len(attempts) == 1
    with pytest.raises(InvalidInputError, match="does not see the data"):
        raise_failure(tmp_path)
