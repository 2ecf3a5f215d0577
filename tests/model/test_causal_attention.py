"""Attention of the last queries: the same as with a mask of all positions, in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from longrope.model import causal_attention as module
from longrope.model.causal_attention import causal_attention


def masked(query, key, value, scale, window=None, softcap=None):
    """Everything at once, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = torch.arange(key.shape[2])
    own = seen[-query.shape[2] :, None]
    hidden = seen > own
    if window is not None:
        hidden |= seen <= own - window
    weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
    return (weights @ value).transpose(1, 2)


def random(queries, keys, heads=4, groups=2, size=16, value_size=16, rows=2, seed=0):
    make = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, heads, queries, size, generator=make)
    # As a cache gives them: the first part of a longer buffer.
    key, value = (torch.randn(rows, groups, keys + 7, each, generator=make) for each in (size, value_size))
    return query, key[:, :, :keys], value[:, :, :keys]


SIZES = [(1, 1), (1, 100), (64, 64), (48, 200), (200, 201), (33, 1000)]


@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize("window", [None, 1, 10, 150, 5000])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_equals_a_mask_of_all_positions(queries, keys, window, softcap):
    inputs = random(queries, keys)
    found = causal_attention(*inputs, 0.3, window, softcap)
    torch.testing.assert_close(found, masked(*inputs, 0.3, window, softcap).float(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1), (6, 2)])
@pytest.mark.parametrize("value_size", [16, 8])
def test_heads_share_keys_in_their_order(heads, groups, value_size):
    inputs = random(48, 200, heads, groups, value_size=value_size)
    found = causal_attention(*inputs, 0.25)
    assert found.shape == (2, 48, heads, value_size)
    torch.testing.assert_close(found, masked(*inputs, 0.25).float(), rtol=1e-5, atol=2e-6)


@given(st.integers(1, 70), st.integers(0, 300), st.none() | st.integers(1, 90), st.sampled_from([None, 5.0]))
def test_any_sizes(queries, past, window, softcap):
    inputs = random(queries, past + queries, rows=1)
    found = causal_attention(*inputs, 0.3, window, softcap)
    torch.testing.assert_close(found, masked(*inputs, 0.3, window, softcap).float(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_tiles_and_blocks_smaller_than_the_keys_change_nothing(monkeypatch, window, softcap):
    monkeypatch.setattr(module, "_TILE", 1)
    monkeypatch.setattr(module, "_WINDOW_BLOCK", 64)
    inputs = random(150, 1000)
    found = causal_attention(*inputs, 0.3, window, softcap)
    torch.testing.assert_close(found, masked(*inputs, 0.3, window, softcap).float(), rtol=1e-5, atol=2e-6)


def test_windows_are_given_the_keys_that_they_see_and_no_more(monkeypatch):
    monkeypatch.setattr(module, "_WINDOW_BLOCK", 64)
    seen, real = [], module.functional.scaled_dot_product_attention

    def noted(query, key, value, **how):
        seen.append((query.shape[2], key.shape[2]))
        return real(query, key, value, **how)

    monkeypatch.setattr(module.functional, "scaled_dot_product_attention", noted)
    causal_attention(*random(150, 1000, groups=4), 0.3, window=70)
    assert seen == [(64, 64 + 69), (64, 64 + 69), (22, 22 + 69)]


class Scores(TorchDispatchMode):
    """Elements of the products of matrices, of one query and key head after the other."""

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.bmm.default:
            self.sizes.add(out.numel())
        return out


@pytest.mark.parametrize(("window", "keys"), [(None, 256), (70, 16 + 69)])
def test_no_more_scores_live_at_once_than_those_of_a_tile(monkeypatch, window, keys):
    monkeypatch.setattr(module, "_TILE", 1)
    inputs = random(150, 1000, groups=4)
    with Scores() as scores:
        causal_attention(*inputs, 0.3, window, softcap=2.0)
    assert max(scores.sizes) == 2 * 4 * 16 * keys


def test_kernels_get_no_tensor_beyond_their_offsets(monkeypatch):
    """Offsets in the memory of all positions: the keys so far are the first part of it."""
    sizes = []
    real = module._past_and_diagonal

    def noted(query, key, value, scale):
        sizes.append(key.numel())
        return real(query, key, value, scale)

    monkeypatch.setattr(module, "_past_and_diagonal", noted)
    inputs = random(48, 200)
    whole = causal_attention(*inputs, 0.3)
    head = 200 * 16
    assert sizes == [4 * head] * 2  # both rows and groups, for each query of a group
    buffered = 207 * 16
    for indexed, at_once, calls in (
        (3 * buffered + head - 1, 2 * head, 4),  # one group of both rows
        (2 * buffered + head - 1, 2 * head, 4),  # both groups of one row
        (buffered + head - 1, head, 8),
    ):
        sizes.clear()
        monkeypatch.setattr(module, "INDEXED", indexed)
        torch.testing.assert_close(causal_attention(*inputs, 0.3), whole)
        assert sizes == [at_once] * calls


def test_half_precision_is_as_exact_as_one_kernel():
    """Merging two parts that were rounded costs no more than rounding one."""
    inputs = [each.bfloat16() for each in random(48, 200)]
    exact = masked(*inputs, 0.3)
    error = (causal_attention(*inputs, 0.3).double() - exact).abs().max()
    assert error <= 2 * 2**-8 * exact.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("window", "softcap", "value_size"), [(None, None, 64), (100, None, 64), (None, 2.0, 64), (None, None, 32)]
)
def test_on_a_gpu(dtype, window, softcap, value_size):
    inputs = [each.to("cuda", dtype) for each in random(300, 5000, 8, 2, 64, value_size, rows=1)]
    found = causal_attention(*inputs, 0.125, window, softcap).cpu().double()
    exact = masked(*(each.cpu() for each in inputs), 0.125, window, softcap)
    assert (found - exact).abs().max() <= (2**-7 if dtype == torch.bfloat16 else 1e-4) * exact.abs().max()
