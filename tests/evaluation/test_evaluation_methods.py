"""The methods of an evaluation that are not published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from longrope.evaluation.methods import open_methods
from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.model.score import score_tokens
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.rope.policy import FactorSchedule, Window


def test_hf_is_what_plain_transformers_computes(model_folder: Path, tmp_path: Path) -> None:
    plain = RopeFactors.identity(10000.0, 16, 64)
    long = yarn(plain, 256)
    short = plain.replace(lambdas=(1.5,) * 8, attention_factor=long.attention_factor)
    schedule = FactorSchedule((Window(64, short), Window(128, yarn(plain, 128)), Window(256, long)))
    folder = export_folder(ModelSource(str(model_folder)), schedule, tmp_path / "exported").folder
    config = AutoConfig.from_pretrained(folder)
    methods = open_methods(read_rope(config, folder), (64, 128, 256), None, ("hf", "none"), config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(5, loaded.config.vocab_size, (1, 256), generator=torch.Generator().manual_seed(0))
    for length in (64, 128, 256):
        with torch.no_grad():
            logits = loaded(input_ids=ids[:, :length]).logits[0, :-1]
        expected = functional.cross_entropy(logits, ids[0, 1:length], reduction="none").numpy()
        ours = {
            name: score_tokens(loaded, ids[0, :length], policy.factors_for(length)) for name, policy in methods.items()
        }
        assert ours["hf"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        if length == 128:  # a window between the two lists, which plain transformers does not have
            assert abs(ours["none"] - expected).max() > 1e-3
