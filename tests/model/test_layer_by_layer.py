"""Layer by layer: the same scores as a plain forward pass, in less memory, and in spite of memory that runs out."""

import numpy as np
import pytest
import torch
from model_cases import random_ids
from tiny_models import rotary_dim

from longrope.exceptions import UnsupportedModelError
from longrope.model import layer_by_layer, score, scoring_plan
from longrope.model.architectures import ARCHITECTURES, architecture_for
from longrope.model.attach import attach, attached
from longrope.model.layer_by_layer import LEAST_CHUNK, LayerByLayer
from longrope.model.memory_retries import is_out_of_memory
from longrope.model.residual import DeviceResidual, HostResidual
from longrope.model.score import score_blocks, score_tokens
from longrope.model.scoring_plan import ScoringPlan
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

LENGTH = 768


def candidates(model_type):
    plain = RopeFactors.identity(1e4, rotary_dim(model_type), 64)
    return [yarn(plain, LENGTH), plain.replace(target_length=LENGTH, n_hat=20)]


@pytest.fixture
def chunked(monkeypatch):
    """Scores as with chunks of so many tokens."""

    def run(chunk, work):
        monkeypatch.setattr(scoring_plan, "CPU_CHUNK", chunk)
        return work()

    return run


@pytest.mark.parametrize("chunk", [100, 192, LENGTH - 1])
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_equals_a_plain_forward_pass(make_tiny_model, chunked, model_type, chunk):
    """768 tokens in chunks that divide them and that do not, under several candidates, one with n_hat."""
    model, tokens, factors = make_tiny_model(model_type), random_ids(LENGTH)[0], candidates(model_type)
    plain = chunked(LENGTH, lambda: score_blocks(model, tokens, factors))
    assert plain[0] != pytest.approx(plain[1], rel=1e-3)
    found = chunked(chunk, lambda: score_blocks(model, tokens, factors))
    np.testing.assert_allclose(found, plain, rtol=1e-5)


@pytest.mark.parametrize("window", [20, 300])
@pytest.mark.parametrize("model_type", ["mistral", "phi3"])
def test_equals_a_plain_forward_pass_within_sliding_windows(make_tiny_model, chunked, model_type, window):
    model, tokens = make_tiny_model(model_type, sliding_window=window), random_ids(LENGTH)[0]
    everywhere = make_tiny_model(model_type)
    plain, others, found = (
        chunked(chunk, lambda each=each: score_blocks(each, tokens, candidates(model_type)))
        for chunk, each in ((LENGTH, model), (LENGTH, everywhere), (100, model))
    )
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    assert plain != pytest.approx(others, rel=1e-3)


def test_equals_a_plain_forward_pass_under_autocast(make_tiny_model, chunked):
    """Where values come in half precision and rotated keys do not, as in mixed training."""
    model, tokens, factors = make_tiny_model(), random_ids(LENGTH)[0], candidates("llama")

    def mixed():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return score_blocks(model, tokens, factors)

    full, plain, found = score_blocks(model, tokens, factors), chunked(LENGTH, mixed), chunked(100, mixed)
    np.testing.assert_allclose(found, plain, rtol=0.01)
    assert np.abs(plain / full - 1).max() > 1e-4


@pytest.mark.parametrize("first", [1, 100, 101, 650, LENGTH - 1])
def test_scores_from_a_position_on(make_tiny_model, chunked, first):
    model, tokens, factors = make_tiny_model(), random_ids(LENGTH)[0], candidates("llama")[0]
    plain, found = (chunked(chunk, lambda: score_tokens(model, tokens, factors, first)) for chunk in (LENGTH, 100))
    assert len(found) == LENGTH - first
    np.testing.assert_allclose(found, plain, rtol=1e-4)


def test_the_model_is_as_it_was(make_tiny_model, chunked):
    model, tokens = make_tiny_model(), random_ids(LENGTH)[0]
    before, layers = model(tokens[None]).logits, model.model.layers
    attachment = attach(model, candidates("llama")[0])
    chunked(100, lambda: score_blocks(model, tokens, candidates("llama"), attachment=attachment))
    attachment.detach()
    assert model.model.layers is layers
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(tokens[None]).logits, before)


def test_what_fails_in_the_middle_leaves_the_model_as_it_was(make_tiny_model, chunked, monkeypatch):
    model, tokens = make_tiny_model(), random_ids(LENGTH)[0]
    layers = model.model.layers

    def fail(*args):
        raise RuntimeError("something else")

    hook = layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        chunked(100, lambda: score_blocks(model, tokens, candidates("llama")))
    hook.remove()
    assert model.model.layers is layers
    assert model.config._attn_implementation == "sdpa"


# --- Memory that runs out ---


def failing(module, calls, message="CUDA out of memory. Tried to allocate 2.00 GiB", kind=torch.OutOfMemoryError):
    """Memory runs out at these calls of a module, counted from 0."""
    count = iter(range(10**6))

    def fail(*args):
        if next(count) in calls:
            raise kind(message)

    return module.register_forward_pre_hook(fail)


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("where", ["self_attn", "mlp"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("calls", "chunk"), [({0}, 128), ({2}, 128), ({1, 2}, 64)])
def test_memory_that_runs_out_halves_the_chunk(
    make_tiny_model, chunked, monkeypatch, where, layer, calls, chunk, on_host
):
    model, tokens, factors = make_tiny_model(), random_ids(LENGTH)[0], candidates("llama")
    plain = chunked(LENGTH, lambda: score_blocks(model, tokens, factors))
    seen = []
    part = getattr(model.model.layers[layer], where)
    hooks = [
        failing(part, calls),
        model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])),
    ]
    monkeypatch.setattr(score, "plan_scoring", lambda *sizes: ScoringPlan(256, on_host))
    found = score_blocks(model, tokens, factors)
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    assert seen[-1] == chunk


@pytest.mark.parametrize("where", ["embed_tokens", "norm"])
def test_memory_that_runs_out_before_and_after_the_layers(make_tiny_model, chunked, where):
    model, tokens, factors = make_tiny_model(), random_ids(LENGTH)[0], candidates("llama")
    plain = chunked(LENGTH, lambda: score_blocks(model, tokens, factors))
    hook = failing(getattr(model.model, where), {1, 4})
    found = chunked(256, lambda: score_blocks(model, tokens, factors))
    hook.remove()
    np.testing.assert_allclose(found, plain, rtol=1e-5)


@pytest.mark.parametrize(("chunk", "calls"), [(LENGTH, {0}), (LENGTH, {0, 1, 3}), (256, {0}), (256, {1, 3})])
def test_memory_that_runs_out_at_the_logits(make_tiny_model, chunked, chunk, calls):
    model, tokens, factors = make_tiny_model(), random_ids(LENGTH)[0], candidates("llama")
    plain = chunked(LENGTH, lambda: score_blocks(model, tokens, factors))
    hook = failing(model.lm_head, calls)
    found = chunked(chunk, lambda: score_blocks(model, tokens, factors))
    hook.remove()
    np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_memory_that_runs_out_in_a_sample_that_is_scored_at_once(make_tiny_model, chunked):
    model, tokens, factors = make_tiny_model(), random_ids(LENGTH)[0], candidates("llama")
    plain = chunked(LENGTH, lambda: score_blocks(model, tokens, factors))
    for calls in ({0}, {0, 2}):
        hook = failing(model.model.layers[1].mlp, calls)
        found = chunked(LENGTH, lambda: score_blocks(model, tokens, factors))
        hook.remove()
        np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_a_residual_stream_for_which_there_is_no_memory_goes_to_the_host(make_tiny_model, chunked, monkeypatch):
    model, tokens, factors = make_tiny_model(), random_ids(LENGTH)[0], candidates("llama")
    plain = chunked(LENGTH, lambda: score_blocks(model, tokens, factors))
    tried = []

    def fail(*given):
        tried.append(given)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DeviceResidual, "__init__", fail)
    np.testing.assert_allclose(chunked(256, lambda: score_blocks(model, tokens, factors)), plain, rtol=1e-5)
    assert len(tried) == 1


@pytest.mark.parametrize("kind", [DeviceResidual, HostResidual])
def test_memory_that_runs_out_while_the_stream_is_written(make_tiny_model, chunked, monkeypatch, kind):
    model, tokens, factors = make_tiny_model(), random_ids(LENGTH)[0], candidates("llama")
    plain = chunked(LENGTH, lambda: score_blocks(model, tokens, factors))
    write, count = kind.write, iter(range(10**6))

    def fail(self, start, states):
        if next(count) in {1, 9}:  # of the embeddings, and of layers
            raise torch.OutOfMemoryError("CUDA out of memory")
        write(self, start, states)

    monkeypatch.setattr(kind, "write", fail)
    monkeypatch.setattr(score, "plan_scoring", lambda *sizes: ScoringPlan(256, kind is HostResidual))
    np.testing.assert_allclose(score_blocks(model, tokens, factors), plain, rtol=1e-5)


def test_memory_that_is_never_enough_is_an_error(make_tiny_model, chunked):
    model, tokens = make_tiny_model(), random_ids(LENGTH)[0]
    sizes = []

    def fail(module, args):
        sizes.append(args[0].shape[1])
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.model.layers[0].mlp.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        chunked(500, lambda: score_blocks(model, tokens, candidates("llama")))
    hook.remove()
    assert sizes == [500, 250, 125, LEAST_CHUNK]


def test_no_chunk_is_begun_again_whose_weights_all_processes_gather(make_tiny_model, chunked):
    """As under ZeRO 3, where the others would wait for what this one does twice."""
    model = make_tiny_model()
    model.model.layers[1].mlp.up_proj.weight.ds_id = 1
    hook = failing(model.model.layers[0].mlp, {1})
    with pytest.raises(torch.OutOfMemoryError):
        chunked(256, lambda: score_blocks(model, random_ids(LENGTH)[0], candidates("llama")))
    hook.remove()


@pytest.mark.parametrize("given", [{"s_aux": torch.zeros(4)}, {"is_causal": False}])
def test_attention_that_is_another_is_refused(given):
    states = torch.zeros(1, 4, 2, 16)
    with pytest.raises(UnsupportedModelError, match="cannot be computed in chunks"):
        layer_by_layer._attend(torch.nn.Identity(), states, states, states, None, **given)


def test_which_errors_mean_that_memory_ran_out():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# --- What is held ---


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize(("kept", "times"), [(0, 12), (60_000, 12), (130_000, 6), (1 << 28, 6)])
def test_what_layers_are_given_is_kept_or_made_again(make_tiny_model, monkeypatch, kept, times, on_host):
    """What is kept of both chunks together counts: cosines and sines of 768 tokens are 98304 bytes."""
    model, tokens = make_tiny_model(num_hidden_layers=4), random_ids(LENGTH)
    monkeypatch.setattr(layer_by_layer, "KEPT", kept)
    decoder = architecture_for(model.config).decoder_of(model)
    factors = candidates("llama")[0]
    embedded = []
    model.model.embed_tokens.register_forward_hook(lambda *args: embedded.append(1))
    with attached(model, factors, length=LENGTH), torch.inference_mode():
        plain = decoder(input_ids=tokens).last_hidden_state
        embedded.clear()
        parts = list(LayerByLayer(decoder, tokens, 384, on_host).run())
    torch.testing.assert_close(torch.cat([hidden for _, hidden in parts], dim=1), plain, rtol=1e-4, atol=1e-5)
    assert [start for start, _ in parts] == [0, 384]
    # Once for the residual stream and once for the final norm; between them for the first layer, or for each.
    assert len(embedded) == times


@pytest.mark.gpu
@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "deepseek_v3"])
def test_on_a_gpu(make_tiny_model, monkeypatch, model_type, on_host):
    model, tokens, factors = make_tiny_model(model_type).to("cuda"), random_ids(LENGTH)[0], candidates(model_type)
    plans = iter([ScoringPlan(LENGTH), ScoringPlan(100, on_host)])
    monkeypatch.setattr(score, "plan_scoring", lambda *sizes: next(plans))
    plain = score_blocks(model, tokens, factors)
    np.testing.assert_allclose(score_blocks(model, tokens, factors), plain, rtol=1e-4)
