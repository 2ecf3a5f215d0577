"""Whole fine-tuning runs of a tiny model: what they are given, and what they leave."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from longrope.finetune.run_record import RunRecord, lock_of, open_run
from longrope.finetune.settings import FinetuneSettings
from longrope.rope.factors import RopeFactors

WINDOW, LENGTH, STEPS = 64, 128, 10
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def write_factors(path: Path, target: int = 4 * WINDOW, rotary_dim: int = 16, **changes: Any) -> Path:
    """Factors for a head of ``rotary_dim`` dimensions, far enough from plain RoPE to be told from it by the loss."""
    pairs = rotary_dim // 2
    lambdas = tuple(round(1 + 5 * i / (pairs - 1), 2) for i in range(pairs))
    factors = RopeFactors(
        **{
            "lambdas": lambdas,
            "rope_theta": 10000.0,
            "rotary_dim": rotary_dim,
            "original_length": WINDOW,
            "target_length": target,
            "attention_factor": 1.2,
            **changes,
        }
    )
    factors.save(path)
    return path


def tiny_settings(folder: Path, model: Path, data: Path, **changes: Any) -> FinetuneSettings:
    """Ten steps of four segments of twice the window, so that half a segment is no longer than the window."""
    folder.mkdir(parents=True, exist_ok=True)
    return FinetuneSettings(
        **{
            "model": str(model),
            "factors": str(write_factors(folder / "given.json")),
            "data": str(data),
            "output": str(folder / "run"),
            "seq_length": LENGTH,
            "steps": STEPS,
            "learning_rate": 1e-3,
            "warmup": 2,
            "max_grad_norm": 0.1,  # binding, so that a gradient of the wrong size shows in the loss
            "global_batch": 4,
            "save_steps": 2,
            "zero": 0,
            **changes,
        }
    )


def begin(settings: FinetuneSettings, fingerprint: str, *, resume: bool = False) -> RunRecord:
    """The record of a run that is opened and left."""
    lock = lock_of(settings)
    try:
        return open_run(settings, fingerprint, {}, resume, lock)
    finally:
        lock.release()


def history(run: Path) -> list[dict[str, float]]:
    """What was logged for each step, from the newest checkpoint."""
    newest = max((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    state = json.loads((newest / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def weights(run: Path) -> dict[str, Tensor]:
    """The weights of the result, by name."""
    return load_file(run / "model" / "model.safetensors")
