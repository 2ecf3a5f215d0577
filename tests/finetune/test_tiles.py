"""Functions applied by tiles: the same values and gradients, with less memory and better sums."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from longrope.exceptions import SettingsError
from longrope.finetune.replaced_forward import ReplacedForward
from longrope.finetune.tiles import apply_by_tiles, refuse_dropout


@given(rows=st.integers(1, 13), tile=st.integers(1, 15), scalar=st.booleans(), frozen=st.booleans())
def test_values_and_gradients_are_those_of_the_function(rows: int, tile: int, scalar: bool, frozen: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    choice = torch.randint(3, (rows,), generator=generator)
    weight = torch.nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64), requires_grad=not frozen)

    def function(hidden: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        assert len(hidden) <= tile or len(hidden) == rows
        found = torch.tanh(hidden @ weight.T).gather(1, choice[:, None])
        return found.sum() if scalar else found

    wanted = [hidden] if frozen else [hidden, weight]
    expected = function(hidden, choice)
    given_grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(expected, wanted, given_grad)
    found = apply_by_tiles(function, [weight], tile, hidden, choice)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, wanted, given_grad), gradients)
    with torch.no_grad():
        torch.testing.assert_close(apply_by_tiles(function, [weight], tile, hidden, choice), expected)


def test_gradients_of_half_precision_weights_are_added_up_in_float32() -> None:
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    rows = torch.ones(2048, 1, dtype=torch.bfloat16)
    apply_by_tiles(lambda part: (part * weight).sum(), [weight], 1, rows).backward()
    assert weight.grad is not None
    assert weight.grad.item() == 2048  # 256 + 1 is 256 in bfloat16
    assert weight.grad.dtype == torch.bfloat16


def test_inside_a_checkpoint_nothing_is_kept_and_nothing_computed_a_third_time() -> None:
    calls: list[int] = []
    kept: list[weakref.ref[torch.Tensor]] = []
    weight = torch.nn.Parameter(torch.ones(3))

    def layer(hidden: torch.Tensor) -> torch.Tensor:
        def function(part: torch.Tensor) -> torch.Tensor:
            calls.append(len(part))
            return torch.tanh(part * weight)

        normed = hidden * 2
        kept.append(weakref.ref(normed))
        return hidden + apply_by_tiles(function, [weight], 2, normed)

    total = checkpoint(layer, torch.ones(6, 3, requires_grad=True), use_reentrant=False).sum()
    assert kept[0]() is None
    total.backward()
    assert calls == [2] * 6


def test_autocast_holds_in_the_backward_pass_too() -> None:
    linear = torch.nn.Linear(8, 8)
    hidden = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    dtypes = set()

    def function(part: torch.Tensor) -> torch.Tensor:
        out = linear(part)
        dtypes.add(out.dtype)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.autograd.grad(linear(hidden).sum(), [hidden, *linear.parameters()])
        torch.clear_autocast_cache()
        total = apply_by_tiles(function, linear.parameters(), 2, hidden).sum()
        again = apply_by_tiles(function, linear.parameters(), 2, hidden).sum()
        inside = torch.autograd.grad(again, [hidden, *linear.parameters()])
    outside = torch.autograd.grad(total, [hidden, *linear.parameters()])
    assert dtypes == {torch.bfloat16}
    for found in (inside, outside):
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
        assert all(each.dtype == torch.float32 for each in found)


def test_dropout_is_refused_where_it_is_at_work() -> None:
    block = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    with pytest.raises(SettingsError, match=r"^1 drops out"):
        refuse_dropout(block)
    refuse_dropout(block.eval())
    refuse_dropout(torch.nn.Dropout(0.0))


def test_a_forward_comes_back_whoever_replaced_it_meanwhile() -> None:
    module = torch.nn.Linear(2, 2)
    rows = torch.ones(1, 2)
    plain = module(rows)
    first = ReplacedForward(module, lambda original, rows: original(rows) + 1)
    second = ReplacedForward(module, lambda original, rows: original(rows) * 2)
    assert torch.equal(module(rows), (plain + 1) * 2)
    first.remove()
    assert torch.equal(module(rows), plain * 2)
    second.remove()
    second.remove()
    assert torch.equal(module(rows), plain)
