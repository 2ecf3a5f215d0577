"""Plans for scoring: from sizes alone, the largest chunk that fits, the residual stream on the host only if it must."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longrope.model.architectures import architecture_for
from longrope.model.scoring_plan import CPU_CHUNK, GPU_CHUNKS, ScoringPlan, fit, plan_scoring

GIB = 1 << 30
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
LLAMA2_7B = SimpleNamespace(
    hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32, head_dim=128
)
LLAMA3_8B = SimpleNamespace(**{**vars(LLAMA2_7B), "intermediate_size": 14336, "num_key_value_heads": 8})
MILLION = 1 << 20


def plan(config, length, *free, rows=1):
    return fit(config, rows, length, 2, dict(zip((FIRST, SECOND), (each * GIB for each in free), strict=False)), FIRST)


def test_on_cpu(make_tiny_model):
    model = make_tiny_model()
    assert plan_scoring(architecture_for(model.config).decoder_of(model), 1, 10**6) == ScoringPlan(CPU_CHUNK)


def test_two_million_tokens_on_one_gpu():
    """80 GB hold 12.5 GiB of weights, 16 GiB of residual stream, and 32 GiB of one layer's keys and values."""
    usable = 0.92 * 79.1 - 12.5 - 1
    assert plan(LLAMA2_7B, 2 * MILLION, usable) == ScoringPlan(GPU_CHUNKS[0])
    assert plan(LLAMA3_8B, 2 * MILLION, usable) == ScoringPlan(GPU_CHUNKS[0])
    assert plan(LLAMA2_7B, 4 * MILLION, usable).on_host
    assert plan(LLAMA2_7B, 2 * MILLION, 40).on_host
    assert not plan(LLAMA2_7B, MILLION, 40).on_host


def test_the_residual_stream_is_on_the_first_gpu_only():
    """16 GiB of it and 32 GiB of keys and values."""
    assert plan(LLAMA2_7B, 2 * MILLION, 60, 35) == ScoringPlan(GPU_CHUNKS[0])
    assert plan(LLAMA2_7B, 2 * MILLION, 35, 60).on_host


@given(st.sampled_from([LLAMA2_7B, LLAMA3_8B]), st.integers(1, 8 * MILLION), st.floats(0.1, 140), st.integers(1, 16))
def test_less_memory_or_more_tokens_never_mean_more_at_a_time(config, length, free, rows):
    one = plan(config, length, free, rows=rows)
    assert one.chunk in GPU_CHUNKS
    for less in (
        plan(config, 2 * length, free, rows=rows),
        plan(config, length, free, rows=rows + 1),
        plan(config, length, free / 2, rows=rows),
    ):
        assert (less.on_host, -less.chunk) >= (one.on_host, -one.chunk)


def test_experts_count_by_how_many_work_on_a_token():
    dense = SimpleNamespace(**{**vars(LLAMA3_8B), "intermediate_size": 2048})
    mixed = SimpleNamespace(**vars(dense), num_experts_per_tok=8, moe_intermediate_size=8192)
    assert plan(mixed, 1000, 1).chunk < plan(dense, 1000, 1).chunk


@pytest.mark.parametrize("free", [-5, 0.001])
def test_the_smallest_chunk_is_tried_where_nothing_fits(free):
    assert plan(LLAMA2_7B, MILLION, free) == ScoringPlan(GPU_CHUNKS[-1], True)
