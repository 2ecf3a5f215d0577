"""Plans for scoring: from sizes alone, the largest chunk that fits, the residual stream on the host only if it must."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from living_tensors import Peak
from tiny_models import llama_to_measure, tiny_config
from transformers import AutoModelForCausalLM

from longrope.model import score, scoring_plan
from longrope.model.architectures import architecture_for
from longrope.model.scoring_plan import CPU_CHUNK, GPU_CHUNKS, LayerSizes, ScoringPlan, fit, plan_scoring
from longrope.rope.factors import RopeFactors

GIB = 1 << 30
LLAMA2_7B = LayerSizes(4096, 4096, 4096, 4096, 11008)
LLAMA3_8B = LayerSizes(4096, 4096, 1024, 1024, 14336)
MILLION = 1 << 20


def plan(sizes, length, free, others=None, rows=1):
    return fit(sizes, 2 * rows, length, free * GIB, others if others is None else others * GIB)


def test_on_cpu(make_tiny_model):
    model = make_tiny_model()
    assert plan_scoring(model, architecture_for(model.config).decoder_of(model), 1, 10**6) == ScoringPlan(CPU_CHUNK)


class OnGpu:
    """What a plan asks of a model: weights of so many GiB on GPUs, and layers of some that are kept elsewhere."""

    class Weight:
        def __init__(self, gib, device, training=False):
            self.nbytes, self.device = int(gib * GIB), torch.device(device)
            self.is_meta, self.requires_grad = device == "meta", training

        def element_size(self):
            return 2

    class Module:
        def __init__(self, *weights):
            self._weights = weights

        def parameters(self):
            return iter(self._weights)

    def __init__(self, weights, layers=(), share=1.0):
        self.weight, self._all = weights[0], [*weights, *layers]
        self.layers = [self.Module(each) for each in (*weights, *layers)]
        self.config = tiny_config(
            "llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=32, head_dim=128
        )
        self.config.intermediate_size = 11008
        setattr(self, scoring_plan.SHARE, share)

    def parameters(self):
        return iter(self._all)

    def get_input_embeddings(self):
        return self

    def plan(self, length, rows=1, processes=1):
        return plan_scoring(self, self, rows, length, processes)


@pytest.fixture
def gpus_of_80_gb(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=79.1 * GIB))


@pytest.mark.usefixtures("gpus_of_80_gb")
def test_on_a_gpu_weights_take_their_part():
    weight = OnGpu.Weight
    assert OnGpu([weight(12.5, "cuda:0")]).plan(2 * MILLION) == plan(LLAMA2_7B, 2 * MILLION, 66.6)
    assert OnGpu([weight(30, "cuda:0")]).plan(2 * MILLION).on_host
    assert OnGpu([weight(12.5, "cuda:0")], share=0.5).plan(2 * MILLION).on_host
    assert OnGpu([weight(12.5, "cuda:0")]).plan(2 * MILLION, rows=2) == plan(LLAMA2_7B, 2 * MILLION, 66.6, rows=2)
    # On two GPUs, the second of which has the less room.
    two = OnGpu([weight(10, "cuda:0"), weight(60, "cuda:1")])
    assert two.plan(MILLION) == plan(LLAMA2_7B, MILLION, 69.1, 19.1)
    # Of layers that are kept elsewhere the largest.
    kept = [weight(25, "meta"), weight(30, "meta")]
    assert OnGpu([weight(1, "cuda:0")], kept).plan(2 * MILLION) == plan(LLAMA2_7B, 2 * MILLION, 48.1)


@pytest.mark.usefixtures("gpus_of_80_gb")
def test_processes_share_the_residual_stream_and_send_each_other_keys():
    """48 GiB free have no room for 16 GiB of stream beside 32 of keys and values; for 2 beside 33 they have."""
    model = OnGpu([OnGpu.Weight(31.1, "cuda:0")])
    assert model.plan(2 * MILLION).on_host
    assert model.plan(2 * MILLION, processes=8) == ScoringPlan(GPU_CHUNKS[0])


@pytest.mark.usefixtures("gpus_of_80_gb")
def test_beside_an_optimizer_whose_memory_is_not_known():
    model = OnGpu([OnGpu.Weight(12.5, "cuda:0", training=True)])
    assert model.plan(2 * MILLION) == ScoringPlan(scoring_plan.IN_TRAINING)


def test_two_million_tokens_on_one_gpu():
    """80 GB hold 12.5 GiB of weights, 16 GiB of residual stream, and 32 GiB of one layer's keys and values."""
    free = 79.1 - 12.5
    assert plan(LLAMA2_7B, 2 * MILLION, free) == ScoringPlan(GPU_CHUNKS[0])
    assert plan(LLAMA3_8B, 2 * MILLION, free) == ScoringPlan(GPU_CHUNKS[0])
    assert plan(LLAMA2_7B, 3 * MILLION, free).on_host
    assert plan(LLAMA2_7B, 2 * MILLION, 48).on_host
    assert not plan(LLAMA2_7B, MILLION, 48).on_host


def test_a_smaller_chunk_is_better_than_the_residual_stream_on_the_host():
    """49 GiB with what is reserved, and 92% of 53.5 are 49.2: room for 0.19 GiB of a chunk of 2048, not for 0.38."""
    assert plan(LLAMA2_7B, 2 * MILLION, 53.5) == ScoringPlan(2048)


def test_what_processes_send_each_other_takes_room():
    """8 GiB of residual stream beside 32 of keys and values, 4 that are sent, and 1.8: 45.8, not 41.8."""
    assert fit(LLAMA2_7B, 2, 2 * MILLION, 47 * GIB, processes=2) == ScoringPlan(GPU_CHUNKS[0], True)
    assert fit(LLAMA2_7B, 2, 2 * MILLION, 50 * GIB, processes=2) == ScoringPlan(GPU_CHUNKS[0])


def test_the_residual_stream_is_on_the_first_gpu_only():
    """16 GiB of it and 32 GiB of keys and values."""
    assert plan(LLAMA2_7B, 2 * MILLION, 60, 40) == ScoringPlan(GPU_CHUNKS[0])
    assert plan(LLAMA2_7B, 2 * MILLION, 40, 60).on_host
    assert plan(LLAMA2_7B, 2 * MILLION, 60, 20) == ScoringPlan(GPU_CHUNKS[-1], True)


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


@pytest.mark.parametrize("free", [-5, 0.001])
def test_the_smallest_chunk_is_tried_where_nothing_fits(free):
    assert plan(LLAMA2_7B, MILLION, free) == ScoringPlan(GPU_CHUNKS[-1], True)


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("llama", LayerSizes(64, 64, 32, 32, 96)),
        ("mixtral", LayerSizes(64, 64, 32, 32, 2 * (96 + 64))),
        ("qwen3_moe", LayerSizes(64, 64, 32, 32, 2 * (32 + 64))),
        ("deepseek_v3", LayerSizes(64, 4 * 32, 4 * 32, 16 + 16 + 4 * (16 + 16), 2 * (32 + 64))),
    ],
)
def test_sizes_of_a_layer(model_type, sizes):
    assert LayerSizes.of(tiny_config(model_type)) == sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inner", "groups"), [(704, 4), (1408, 1), (64, 4), (64, 1)])
def test_tensors_take_what_was_planned(monkeypatch, dtype, inner, groups):
    monkeypatch.setattr(score, "_LOGITS", 1 << 18)
    monkeypatch.setattr(scoring_plan, "CPU_CHUNK", 512)
    config = llama_to_measure(inner, groups)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    length, sizes = 4096, LayerSizes.of(config)
    with Peak(model.parameters()) as peak:
        score.score_blocks(model, torch.arange(length) % 300, [RopeFactors.identity(1e4, 64, 512)])
    rotary = 2 * 64
    expected = dtype.itemsize * (length * (sizes.hidden + sizes.kept + rotary) + 512 * sizes.at_work)
    assert peak.most == pytest.approx(expected, rel=0.03)
