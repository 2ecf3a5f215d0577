from pathlib import Path
from typing import Any

import pytest
import torch

from longrope.exceptions import RunFailedError, SettingsError
from longrope.finetune import worker
from longrope.finetune.launch import LaunchSettings, Plan, launch
from longrope.finetune.world import World


@pytest.fixture(autouse=True)
def nobody_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "gpus", "launcher", "processes"),
    [
        ({}, 0, "none", 1),
        ({}, 1, "none", 1),
        ({}, 8, "torchrun", 8),
        ({"gpus": 2}, 0, "torchrun", 2),
        ({"gpus": 1}, 8, "none", 1),
        ({"nodes": 2}, 8, "ray", 16),
        ({"launcher": "ray", "gpus": 4}, 8, "ray", 4),
        ({"ray_address": "auto", "gpus": 8}, 0, "ray", 8),
        ({"launcher": "none"}, 8, "none", 1),
        ({"launcher": "torchrun"}, 1, "torchrun", 1),
    ],
)
def test_the_launcher_follows_from_what_is_there(
    given: dict[str, Any], gpus: int, launcher: str, processes: int
) -> None:
    plan = LaunchSettings(**given).resolve(gpus)
    assert (plan.launcher, plan.processes) == (launcher, processes)


def test_a_process_that_was_launched_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "1")
    plan = LaunchSettings().resolve(8)
    assert (plan.launcher, plan.processes) == ("none", 16)
    assert World.from_environment() == World(3, 1, 16, launched=True)
    with pytest.raises(SettingsError, match="started by a launcher already"):
        LaunchSettings(launcher="torchrun").resolve(8)


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_launchers_say_how_many_processes_a_machine_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each, value in (("RANK", "0"), ("WORLD_SIZE", "16"), (name, "8")):
        monkeypatch.setenv(each, value)
    assert LaunchSettings().resolve(8).per_node == 8


def test_deepspeed_has_a_launcher_for_one_process_too() -> None:
    plan = LaunchSettings(gpus=1).resolve(8, zero=2)
    assert (plan.launcher, plan.processes) == ("torchrun", 1)
    assert LaunchSettings(gpus=1).resolve(8, zero=0).launcher == "none"
    with pytest.raises(SettingsError, match="which zero 2 needs; leave --launcher away"):
        LaunchSettings(launcher="none").resolve(1, zero=2)


@pytest.mark.parametrize(
    ("given", "gpus", "message"),
    [
        ({"launcher": "mpi"}, 0, "use auto, none, torchrun, ray"),
        ({"gpus": 0}, 0, "gpus is 0"),
        ({"nodes": 0}, 0, "nodes is 0"),
        ({"device": "tpu"}, 0, "use auto, cuda, cpu"),
        ({"launcher": "none", "gpus": 2}, 8, "launcher none is one process"),
        ({"launcher": "torchrun", "nodes": 2}, 8, "on every node by torchrun"),
        ({"launcher": "torchrun", "ray_address": "auto"}, 8, "use --launcher ray"),
        ({"gpus": 9}, 8, "this machine has 8"),
    ],
)
def test_launches_that_cannot_be_are_refused(given: dict[str, Any], gpus: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LaunchSettings(**given).resolve(gpus)


@pytest.mark.parametrize(
    ("size", "batch", "micro", "sp", "steps"), [(1, 32, 1, 1, 32), (8, 32, 1, 1, 4), (8, 32, 2, 4, 8), (2, 1, 1, 2, 1)]
)
def test_a_step_is_shared_by_the_replicas(size: int, batch: int, micro: int, sp: int, steps: int) -> None:
    assert World(size=size).accumulation(batch, micro, sp) == steps


def test_processes_that_cannot_share_are_refused() -> None:
    with pytest.raises(SettingsError, match="sp is 3, but there are 8 processes"):
        World(size=8).replicas(3)
    with pytest.raises(SettingsError, match=r"global-batch is 6 .* give a multiple of 4"):
        World(size=8).accumulation(6, 1, 2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("tried to allocate"), "training stopped: a GPU ran out of memory; --resume with --off"),
        (ValueError("no\nsuch thing"), r"training stopped: ValueError: no such thing \(all of it in .*failures\)"),
    ],
)
def test_what_stops_training_in_this_process_is_one_line(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, device: str) -> None:
        raise error

    monkeypatch.setattr(worker, "train", train)
    with pytest.raises(RunFailedError, match=message):
        launch(tmp_path, "cpu", Plan("none", 1))
    assert "Traceback" in (tmp_path / "failures" / "rank-0.json").read_text()
