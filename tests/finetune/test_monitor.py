"""What is seen of a run: speed, the time left, and a record that a resumed run goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from longrope.finetune.monitor import METRICS_FILE, Monitor, speed


class Run:
    """Plays Trainer: steps that take as long as a test says."""

    def __init__(self, folder: Path, steps: int = 10, start: int = 0, first: bool = True, **work: Any) -> None:
        self.now = 0.0
        self.state = SimpleNamespace(max_steps=steps, global_step=start, is_world_process_zero=first)
        options = {"tokens": 100, "devices": 4, "clock": lambda: self.now, **work}
        self.monitor = Monitor(folder, **options)
        self.monitor.on_train_begin(None, self.state, None)

    def step(self, seconds: float, **logs: float) -> dict[str, float]:
        self.now += seconds
        self.state.global_step += 1
        self.monitor.on_step_end(None, self.state, None)
        return self.log(**logs) if logs else {}

    def log(self, **logs: float) -> dict[str, float]:
        told = self.monitor.with_speed(logs)
        self.monitor.on_log(None, self.state, None, logs=told)
        return told


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


@given(st.integers(1, 100), st.floats(0.1, 1e4), st.integers(1, 10**7), st.integers(1, 64))
def test_speed(steps: int, seconds: float, tokens: int, devices: int) -> None:
    told = speed(steps, seconds, tokens=tokens, devices=devices, model_flops=1e15, peak=1e14)
    assert told["tokens_per_second"] * seconds == pytest.approx(steps * tokens)
    assert told["tokens_per_second_per_device"] * devices == pytest.approx(told["tokens_per_second"])
    assert told["mfu"] == pytest.approx(10 * steps / (seconds * devices))
    assert "mfu" not in speed(steps, seconds, tokens=tokens, devices=devices, model_flops=1e15)


def test_the_first_step_does_not_count(tmp_path: Path) -> None:
    run = Run(tmp_path, model_flops=2e12, peak=1e12)
    assert "tokens_per_second" not in run.step(60, loss=3.0)
    run.step(2)
    told = run.step(4, loss=2.0)  # two steps in six seconds
    assert told["tokens_per_second"] == pytest.approx(200 / 6)
    assert told["tokens_per_second_per_device"] == pytest.approx(50 / 6)
    assert told["mfu"] == pytest.approx(4e12 / (6 * 4e12))
    assert told["seconds_left"] == pytest.approx(3 * 7)
    told = run.step(9, loss=2.0)  # the speed of this step, the mean of all three
    assert told["tokens_per_second"] == pytest.approx(100 / 9)
    assert told["seconds_left"] == pytest.approx(5 * 6)
    assert told["peak_memory_gib"] > 0


def test_other_logs_stay_as_they_are(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(1, loss=1.0)
    run.step(1)
    assert run.log(held_out=2.0) == {"held_out": 2.0}
    assert lines(tmp_path)[-1] == {"step": 2, "held_out": 2.0}


def test_a_resumed_run_cuts_the_record_and_measures_anew(tmp_path: Path) -> None:
    before = Run(tmp_path)
    for _ in range(6):
        before.step(1, loss=2.0)
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 7, "lo')  # killed here
    run = Run(tmp_path, start=4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert "seconds_left" not in run.step(50, loss=1.0)
    told = run.step(2, loss=1.0)
    assert told["tokens_per_second"] == pytest.approx(50)
    assert told["seconds_left"] == pytest.approx(4 * 2)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)[3:]] == [(4, 2.0), (5, 1.0), (6, 1.0)]


def test_a_loss_that_is_no_number_is_recorded_as_null(tmp_path: Path) -> None:
    Run(tmp_path).step(1, loss=float("nan"), grad_norm=float("inf"))
    (line,) = lines(tmp_path)
    assert (line["loss"], line["grad_norm"]) == (None, None)


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, steps=3, tokens=4096, model_flops=1e12, peak=1e12)
    for loss in (3.0, 2.5, 2.0):  # within a second: the first line and the last
        run.step(0.5, loss=loss, learning_rate=2e-5)
    captured = capsys.readouterr()
    first, last = captured.out.splitlines()
    assert first.startswith("step 1 of 3: loss 3.0000, lr 2e-05, peak ")
    assert last.startswith("step 3 of 3: loss 2.0000, lr 2e-05, 8,192 tokens/s (2,048 per device), causal MFU 50.0%, ")
    assert last.endswith(" GiB, 0 s left")
    assert captured.err == ""


def test_other_processes_write_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, first=False)
    run.step(1, loss=1.0)
    assert "tokens_per_second" in run.step(1, loss=1.0)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_trainer_and_its_integrations_get_the_figures(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> None:
    seen: list[dict[str, float]] = []

    class Integration(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    class Monitored(Trainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(monitor.with_speed(logs), start_time)

    monitor = Monitor(tmp_path, tokens=16, devices=1)
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=3, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    data = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 24
    trainer = Monitored(tiny_llama, args, train_dataset=data, callbacks=[Integration, monitor])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    written = lines(tmp_path)
    assert [line["step"] for line in written] == [1, 2, 3, 3]
    assert ["tokens_per_second" in line for line in written] == [False, True, True, False]
    assert seen == [{name: value for name, value in line.items() if name != "step"} for line in written]
    assert trainer.state.log_history[1]["tokens_per_second"] == seen[1]["tokens_per_second"]
