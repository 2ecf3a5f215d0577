from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import LENGTH, WINDOW, tiny_settings
from transformers import PreTrainedModel

from longrope.finetune.policy import training_policy, with_windows_ahead
from longrope.finetune.precision import Precision
from longrope.finetune.prepare import extend_model
from longrope.model.attach import attached
from longrope.model.rope_config import read_rope
from longrope.rope.attention_factor import su
from longrope.rope.methods import yarn

EXACT = Precision("fp32", torch.float32, None)


def rows(count: int, length: int) -> torch.Tensor:
    return torch.randint(3, 128, (count, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("attention", ["full", "shifted-sparse"])
def test_short_rows_are_trained_as_the_model_has_them_in_use(
    attention: str, make_tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    settings = tiny_settings(
        tmp_path, tmp_path, tmp_path, windows=(WINDOW // 2, LENGTH), attention=attention, attention_factor="shared"
    )
    model = make_tiny_model(attn_implementation="sdpa")
    policy = training_policy(read_rope(model.config), settings)
    assert {each.factors.attention_factor for each in policy.windows} == {1.2}
    short, long = rows(4, WINDOW // 2), rows(1, LENGTH)
    with attached(model.eval(), policy), torch.no_grad():
        expected = model(input_ids=short, labels=short).loss, model(input_ids=long, labels=long).loss
    prepared = extend_model(model.train(), settings, policy, EXACT)
    try:
        with prepared.passes.of(WINDOW // 2):
            assert model(input_ids=short, labels=short).loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
        with prepared.passes.of(LENGTH):
            loss = model(input_ids=long, labels=long).loss.item()
        assert (loss == pytest.approx(expected[1].item(), rel=1e-5)) == (attention == "full")
    finally:
        if prepared.sparse is not None:
            prepared.sparse.remove()


@pytest.mark.parametrize("attention_factor", ["own", "shared"])
def test_windows_ahead_are_trained_and_not_kept(
    attention_factor: str, make_tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    ahead = 16 * WINDOW
    settings = tiny_settings(tmp_path, tmp_path, tmp_path, windows=(LENGTH, ahead), attention_factor=attention_factor)
    model = make_tiny_model(attn_implementation="sdpa")
    policy = training_policy(read_rope(model.config), settings)
    trained = with_windows_ahead(policy, settings)
    assert [each.max_length for each in policy.windows] == [WINDOW, 4 * WINDOW]
    assert trained.windows[:-1] == policy.windows
    factors = trained.factors_for(ahead)
    assert factors.lambdas == yarn(read_rope(model.config).identity(), ahead).lambdas
    assert factors.attention_factor == 1.2
    ids = rows(1, LENGTH)
    with attached(model.eval(), factors), torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()
    prepared = extend_model(model.train(), settings, trained, EXACT)
    with prepared.passes.of(ahead):
        assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(expected, rel=1e-5)
    with prepared.passes.of(LENGTH):
        assert abs(model(input_ids=ids, labels=ids).loss.item() / expected - 1) > 1e-4


def test_attention_factors_of_the_windows(make_tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    rope = read_rope(make_tiny_model().config)

    def chosen(value: str | float, **changes: Any) -> list[float]:
        settings = tiny_settings(tmp_path, tmp_path, tmp_path, attention_factor=value, **changes)
        return [each.factors.attention_factor for each in training_policy(rope, settings).windows]

    assert chosen("own") == [1.0, 1.2]
    assert chosen("shared") == [1.2, 1.2]
    assert chosen("shared", windows=(WINDOW, LENGTH, 16 * WINDOW)) == [pytest.approx(su(16, WINDOW)), 1.2]
    assert chosen(1.1) == [1.1, 1.1]
