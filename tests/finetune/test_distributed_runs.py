"""Runs of several processes train what one process trains, and go on where they were killed; the real launchers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed_worker
import pytest
import torch
import unpinned_worker
from tiny_runs import ENVIRONMENT, LENGTH, STEPS, WINDOW, begin, history, tiny_settings, weights

from longrope.finetune import ray_train
from longrope.finetune.launch import LaunchSettings
from longrope.finetune.run import check, finetune
from longrope.finetune.settings import FinetuneSettings, HeldOutSettings

pytest.importorskip("deepspeed")

WAYS = {
    "one": {"zero": 0},
    "ddp": {"zero": 0},
    "zero 1": {"zero": 1},
    "zero 2": {"zero": 2},
    "zero 3": {"zero": 3},
    "zero 2, sp 2": {"zero": 2, "sp": 2},
    "zero 3, sp 2": {"zero": 3, "sp": 2},
}
KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "mixed": {"windows": (WINDOW // 2, LENGTH), "attention_factor": "shared"},
    "attention": {"method": "attention"},
}


def split(way: str) -> tuple[str, str]:
    """What is trained, and how."""
    kind, _, rest = way.partition(" ")
    return (kind, rest) if kind in KINDS else ("", way)


def cases(*often: str, slow: tuple[str, ...]) -> list[Any]:
    """Ways to train, some of which only `make test-slow` tries: starting processes takes most of a test's time."""
    return [*often, *(pytest.param(way, marks=pytest.mark.slow) for way in slow)]


@pytest.fixture(scope="module")
def settings_of(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, documents_file: Path
) -> Callable[[str, str], FinetuneSettings]:
    """Settings of a way to train, in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs")

    held_out = HeldOutSettings(source=str(documents_file), lengths=(WINDOW, LENGTH), samples=3)

    def settings(way: str, name: str) -> FinetuneSettings:
        own = folder / name.replace(" ", "-").replace(",", "")
        kind, how = split(way)
        return tiny_settings(own, model_folder, documents_file, held_out=held_out, **WAYS[how], **KINDS[kind])

    return settings


@pytest.fixture(scope="module")
def uninterrupted(settings_of: Callable[[str, str], FinetuneSettings]) -> Callable[[str], Path]:
    """The folder of a whole run, which is trained when it is first asked for."""
    done: dict[str, Path] = {}

    def run(way: str) -> Path:
        if way not in done:
            settings = settings_of(way, way)
            done[way] = started(settings)
            assert train(done[way], 1 if way.endswith("one") else 2)
        return done[way]

    return run


def train(folder: Path, processes: int, worker: list[str] | None = None) -> bool:
    """Run the processes of a run, several as torchrun starts them; whether all went well."""
    arguments = worker or ["-m", "longrope.finetune.start", str(folder), "cpu"]
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    print(done.stderr[-3000:])
    return done.returncode == 0


def started(settings: FinetuneSettings, resume: bool = False) -> Path:
    """The folder of a run that is recorded and not yet trained, or to be trained on."""
    plan = LaunchSettings(gpus=2, launcher="torchrun").resolve(0)
    checked = check(settings, plan, "cpu", lambda line: None)
    begin(checked.settings, checked.fingerprint, resume=resume)
    (Path(settings.output) / "factors.json").write_text(checked.factors)
    return Path(settings.output)


@pytest.mark.parametrize(
    "way",
    cases(
        "ddp",
        "zero 2",
        "mixed zero 3, sp 2",
        slow=(
            "zero 1",
            "zero 3",
            "zero 2, sp 2",
            "zero 3, sp 2",
            "mixed ddp",
            "mixed zero 2, sp 2",
            "attention ddp",
            "attention zero 3, sp 2",
        ),
    ),
)
def test_every_way_trains_the_same(way: str, uninterrupted: Callable[[str], Path]) -> None:
    one = f"{split(way)[0]} one".strip()
    alone, shared = history(uninterrupted(one)), history(uninterrupted(way))
    assert len(alone) == STEPS
    for quantity in ("loss", "grad_norm"):
        expected = torch.tensor([entry[quantity] for entry in alone])
        torch.testing.assert_close(torch.tensor([entry[quantity] for entry in shared]), expected, rtol=1e-4, atol=0)
    expected, measured = (json.loads((uninterrupted(each) / "held_out.json").read_text()) for each in (one, way))
    for when, tolerance in (("before", 1e-5), ("after", 1e-3)):
        assert set(expected[when]) == {str(WINDOW), str(LENGTH)}
        assert measured[when] == pytest.approx(expected[when], rel=tolerance)


def test_half_precision_reaches_the_passes(
    settings_of: Callable[[str, str], FinetuneSettings], uninterrupted: Callable[[str], Path]
) -> None:
    folder = started(replace(settings_of("one", "half"), precision="bf16", steps=2))
    assert train(folder, 1)
    half, exact = history(folder)[0]["loss"], history(uninterrupted("one"))[0]["loss"]
    assert 1e-6 < abs(half / exact - 1) < 1e-2


def test_a_run_that_is_done_trains_no_further(uninterrupted: Callable[[str], Path]) -> None:
    folder = uninterrupted("one")
    before = weights(folder)
    assert train(folder, 1)
    assert_same_training(folder, folder)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(folder).items())


def test_shards_that_choose_windows_by_themselves_train_something_else(
    settings_of: Callable[[str, str], FinetuneSettings], uninterrupted: Callable[[str], Path]
) -> None:
    settings = replace(settings_of("zero 2, sp 2", "unpinned"), steps=1, warmup=0, save_steps=1)
    folder = started(settings)
    assert train(folder, 2, [str(unpinned_worker.__file__), str(folder), "cpu"])
    first = history(uninterrupted("one"))[0]["loss"]
    assert abs(history(uninterrupted("zero 2, sp 2"))[0]["loss"] - first) < 1e-4 * first
    assert abs(history(folder)[0]["loss"] - first) > 1e-3 * first


@pytest.mark.parametrize("way", cases("mixed zero 3, sp 2", slow=("zero 2", "zero 3, sp 2")))
def test_a_run_whose_processes_were_killed_goes_on(
    way: str,
    settings_of: Callable[[str, str], FinetuneSettings],
    uninterrupted: Callable[[str], Path],
) -> None:
    settings = settings_of(way, f"killed {way}")
    folder = started(settings)
    assert not train(folder, 2, [str(killed_worker.__file__), str(folder), "cpu", "5"])
    assert not (folder / "model").exists()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert train(folder, 2)
    assert first_steps(folder) == [1, 5]
    assert_same_training(folder, uninterrupted(way))


def test_a_run_goes_on_with_other_checkpoints(settings_of: Callable[[str, str], FinetuneSettings]) -> None:
    settings = replace(settings_of("one", "other checkpoints"), steps=4, save_steps=1)
    folder = started(settings)
    assert not train(folder, 1, [str(killed_worker.__file__), str(folder), "cpu", "2"])
    started(replace(settings, save_steps=0), resume=True)
    assert train(folder, 1)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-1", "checkpoint-4"]
    assert first_steps(folder) == [1, 2]


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("way", cases("zero 2", slow=("zero 3, sp 2", "mixed zero 3, sp 2")))
def test_ray_train_starts_killed_workers_anew(
    way: str,
    settings_of: Callable[[str, str], FinetuneSettings],
    uninterrupted: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray.train")
    monkeypatch.setattr(ray_train, "_work", killed_worker.work_once)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    settings = settings_of(way, f"ray {way}")
    finetune(settings, LaunchSettings(launcher="ray", gpus=2), tell=lambda line: None)
    assert first_steps(Path(settings.output)) == [1, 5]
    assert_same_training(Path(settings.output), uninterrupted(way))


def first_steps(run: Path) -> list[float]:
    """The steps that processes began with: no speed is known of the first one."""
    return [entry["step"] for entry in history(run) if "tokens_per_second" not in entry]


def assert_same_training(resumed: Path, whole: Path) -> None:
    """The same segments at every step, and the same weights at the end."""
    assert [entry["step"] for entry in history(resumed)] == list(range(1, STEPS + 1))
    expected = torch.tensor([entry["loss"] for entry in history(whole)])
    torch.testing.assert_close(torch.tensor([entry["loss"] for entry in history(resumed)]), expected, rtol=1e-6, atol=0)
    states = [
        json.loads((run / f"checkpoints/checkpoint-{STEPS}/longrope-run.json").read_text()) for run in (resumed, whole)
    ]
    assert states[0]["stream"] == states[1]["stream"]
    trained, wanted = weights(resumed), weights(whole)
    assert trained.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-6)
