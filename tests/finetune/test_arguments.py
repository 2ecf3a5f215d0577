"""Trainer's arguments: what it would do by itself, and must not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_settings
from transformers import TrainingArguments

from longrope.finetune.arguments import training_arguments
from longrope.finetune.precision import choose_precision
from longrope.finetune.world import World


def test_one_process_uses_one_gpu_of_the_many_that_it_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def eight(args: TrainingArguments) -> torch.device:
        args._n_gpu = 8  # and Trainer would wrap the model in DataParallel
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(eight))
    settings = tiny_settings(tmp_path, tmp_path, tmp_path, precision="bf16")
    args = training_arguments(settings, World(), choose_precision(settings, "cpu"), "sdpa", "cpu")
    assert args._n_gpu == 1
    assert args.bf16
