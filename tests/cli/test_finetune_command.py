"""`longrope finetune` from the command line: its options, what it prints and leaves, and its exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_search import write_model
from transformers import AutoModelForCausalLM

from longrope.finetune.run_record import RunRecord
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

Run = Callable[..., Any]


@pytest.fixture
def command(longrope: Run, model_folder: Path, documents_file: Path, tmp_path: Path) -> Run:
    """Runs two steps of the tiny model, with more options after those."""
    factors = tmp_path / "factors.json"
    yarn(RopeFactors.identity(10000.0, 16, 64), 256).save(factors)

    def run(output: Path, *more: object, model: Path = model_folder) -> Any:
        return longrope(
            "finetune", model, "--factors", factors, "--data", documents_file, "--output", output,
            "--seq-length", 128, "--steps", 2, "--warmup", 1, "--lr", 1e-3, "--global-batch", 2, *more,
        )  # fmt: skip

    return run


def test_a_run_from_its_command_to_its_model(command: Run, documents_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    watching = ("--held-out", documents_file, "--held-out-lengths", "64,128", "--held-out-samples", 2)
    ended = command(output, *watching)
    assert ended.code == 0, ended.err
    measured = json.loads((output / "held_out.json").read_text())
    for when in ("before", "after"):
        for length in ("64", "128"):
            assert f"{measured[when][length]:.4f}" in ended.out
    assert str(output / "model") in ended.out
    assert AutoModelForCausalLM.from_pretrained(output / "model").config.rope_parameters["rope_type"] == "longrope"

    again = command(output, *watching)
    assert (again.code, again.err) == (
        2,
        f"error: output folder {output} holds a run already; go on with it by --resume, or choose another\n",
    )
    written = (output / "model" / "config.json").stat().st_mtime_ns
    resumed = command(output, *watching, "--resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert (output / "model" / "config.json").stat().st_mtime_ns == written  # nothing was left to be done
    assert f"{measured['after']['128']:.4f}" in resumed.out


def test_other_text_to_measure_by_is_measured(command: Run, documents_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(reversed(documents_file.read_text().splitlines()[:4])))
    assert command(tmp_path / "run", "--held-out", documents_file, "--held-out-samples", 2).code == 0
    resumed = command(tmp_path / "run", "--held-out", other, "--held-out-samples", 2, "--resume")
    assert resumed.code == 0, resumed.err
    measured = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert measured["settings"]["source"] == str(other)
    assert set(measured) == {"settings", "after"}  # what was before cannot be known any more


def test_tied_embeddings_are_not_missed_on_resuming(command: Run, tmp_path: Path) -> None:
    tied = write_model(tmp_path / "tied", tie_word_embeddings=True)
    given = ("--save-steps", 1)
    assert command(tmp_path / "run", *given, model=tied).code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    shutil.rmtree(tmp_path / "run" / "model")
    resumed = command(tmp_path / "run", *given, "--resume", model=tied)
    assert (resumed.code, resumed.err) == (0, "")
    assert "going on from step 1 of 2" in resumed.out


def test_what_was_trained_is_trained_on_without_warnings(command: Run, tmp_path: Path) -> None:
    mixed = ("--windows", "32,128", "--attention-factor", "shared", "--save-steps", 1)
    assert command(tmp_path / "first", *mixed).code == 0
    trained = tmp_path / "first" / "model"
    assert "short_mscale" in (trained / "config.json").read_text()  # which vLLM reads and transformers does not know
    again = command(tmp_path / "second", *mixed, model=trained)
    assert (again.code, again.err) == (0, "")


def test_options_reach_the_run(command: Run, tmp_path: Path) -> None:
    ended = command(
        tmp_path / "run",
        *("--schedule", "cosine", "--betas", 0.8, 0.9, "--weight-decay", 0.1, "--max-grad-norm", 0.5, "--seed", 7),
        *("--micro-batch", 2, "--precision", "fp32", "--no-tf32", "--kernel", "sdpa", "--zero", 0),
        *("--method", "lora", "--lora-rank", 2, "--lora-alpha", 4, "--lora-targets", "q_proj,down_proj"),
        *("--plain-lora", "--attention", "shifted-sparse", "--group", 32),
        *("--no-checkpointing", "--tile-mlp", 16, "--tile-loss", 32, "--save-steps", 1, "--save-limit", 3),
        *("--log-steps", 2, "--launcher", "none", "--device", "cpu"),
        *("--windows", "32,128,512", "--attention-factor", 1.1),
    )
    assert ended.code == 0, ended.err
    settings = RunRecord.read(tmp_path / "run").settings
    assert (settings.steps, settings.warmup, settings.learning_rate, settings.global_batch) == (2, 1, 1e-3, 2)
    assert (settings.schedule, settings.betas, settings.weight_decay) == ("cosine", (0.8, 0.9), 0.1)
    assert (settings.max_grad_norm, settings.seed, settings.micro_batch) == (0.5, 7, 2)
    assert (settings.precision, settings.tf32, settings.kernel, settings.zero) == ("fp32", False, "sdpa", 0)
    assert (settings.method, settings.attention, settings.group) == ("lora", "shifted-sparse", 32)
    adapter, memory = settings.adapter, settings.memory
    assert (adapter.rank, adapter.alpha, adapter.targets) == (2, 4, ("q_proj", "down_proj"))
    assert not adapter.train_embeddings_and_norms
    assert (memory.checkpoint_activations, memory.tile_mlp, memory.tile_loss) == (False, 16, 32)
    assert (settings.windows, settings.attention_factor) == ((32, 128, 512), 1.1)
    assert (settings.save_steps, settings.save_limit, settings.log_steps) == (1, 3, 2)
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


def test_an_output_that_cannot_be_made(command: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ended = command(tmp_path / "file" / "run")
    assert ended.code == 1
    assert ended.err == f"error: {tmp_path / 'file' / 'run'}: Not a directory\n"
