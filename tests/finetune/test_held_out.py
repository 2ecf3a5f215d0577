"""Perplexity before and after training, on the model that is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import LENGTH, WINDOW, write_factors
from transformers import PreTrainedModel

from longrope.data.samples import Sample
from longrope.finetune.held_out import HeldOut, read_held_out
from longrope.finetune.settings import HeldOutSettings
from longrope.model.attach import attach
from longrope.model.rope_config import read_rope
from longrope.rope.policy import load_factors

BOOKS = HeldOutSettings(source="books", lengths=(WINDOW, LENGTH), samples=2)
ARGS = SimpleNamespace(process_index=0, world_size=1, device=torch.device("cpu"))


@pytest.mark.parametrize("together", [False, True])
def test_what_training_leaves_on_the_model_changes_no_measurement(
    together: bool, make_tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = make_tiny_model().train()
    policy = read_rope(model.config).extended_by(load_factors(write_factors(tmp_path / "factors.json")))
    attachment = attach(model, policy)
    attachment.pin(LENGTH)
    samples = [Sample(str(seed), np.random.default_rng(seed).integers(3, 128, LENGTH)) for seed in range(2)]
    held_out = HeldOut(attachment, model, samples, (WINDOW, LENGTH), LENGTH, together, None, BOOKS, tmp_path)
    state = SimpleNamespace(global_step=0, max_steps=2, is_world_process_zero=True)
    held_out.on_train_begin(ARGS, state, None)
    for module in model.modules():  # Ulysses does so where a process holds less than one key-value head
        if hasattr(module, "num_key_value_groups"):
            module.num_key_value_groups = 1
    state.global_step = 1
    held_out.on_train_end(ARGS, state, None)
    assert "after" not in read_held_out(tmp_path, BOOKS)  # stopped before its end
    state.global_step = 2
    held_out.on_train_end(ARGS, state, None)
    measured = read_held_out(tmp_path, BOOKS)
    assert measured["after"] == measured["before"]
    assert set(measured["after"]) == {str(WINDOW), str(LENGTH)}
    assert read_held_out(tmp_path, replace(BOOKS, source="letters")) == {}  # on which nothing was measured
    assert model.training
    assert attachment.is_pinned
