"""Attaching policies: the logits are those of transformers where it can do the same, and everything comes back."""

from itertools import pairwise

import pytest
import torch
from model_cases import (
    EXTENDED,
    LONG,
    ORIGINAL,
    SHORT,
    assert_close,
    difference,
    logits_of,
    random_ids,
    scaled_model,
    under,
)
from transformers import DynamicCache, StaticCache

from longrope.exceptions import FactorsError, RunFailedError, SettingsError, UnsupportedModelError
from longrope.model.attach import attach, attached
from longrope.model.rope_config import read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

PLAIN = RopeFactors.identity(1e4, 16, ORIGINAL)
NEAR = PLAIN.replace(lambdas=tuple(SHORT), attention_factor=1.1)
FAR = PLAIN.replace(lambdas=tuple(LONG), target_length=EXTENDED, attention_factor=1.1)
LATE = FAR.replace(n_hat=8)
SCHEDULE = FactorSchedule((Window(ORIGINAL, NEAR), Window(EXTENDED, FAR)))


def left_padded(ids, lengths):
    """Rows cut to their last tokens, with the mask and the positions that generation would give them."""
    mask = torch.stack([(torch.arange(ids.shape[1]) >= ids.shape[1] - length).long() for length in lengths])
    return ids.masked_fill(mask == 0, 0), mask, (mask.cumsum(-1) - 1).clamp(min=0)


# Factors


@pytest.mark.parametrize("length", [ORIGINAL, 150])
def test_present_policy_of_a_dynamic_model(make_tiny_model, length):
    model = scaled_model(make_tiny_model, kind="dynamic")
    ids = random_ids(length)
    ours = under(model, read_rope(model.config).policy, ids)
    assert_close(ours, logits_of(model, ids), 1e-4)
    assert (difference(ours, under(model, PLAIN, ids)) > 1e-2) == (length > ORIGINAL)


def test_n_hat_keeps_start_tokens_at_their_plain_angle(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(100)
    plain = under(model, PLAIN.replace(attention_factor=1.1), ids)
    late = under(model, LATE, ids)
    assert_close(late[:, :8], plain[:, :8])
    assert difference(late[:, 8:], plain[:, 8:]) > 1e-2
    assert difference(late, under(model, FAR, ids)) > 1e-2


# Putting back


def test_everything_is_put_back_after_an_exception(make_tiny_model):
    model = make_tiny_model()
    rotary, ids = model.model.rotary_emb, random_ids(20)
    before = logits_of(model, ids)
    with pytest.raises(IndexError), attached(model, FAR, length=128):
        logits_of(model, ids + model.config.vocab_size)
    assert model.model.rotary_emb is rotary
    assert not model.model._forward_pre_hooks
    assert torch.equal(logits_of(model, ids), before)


def test_a_model_takes_one_policy_at_a_time(make_tiny_model):
    model = make_tiny_model()
    with attached(model, FAR) as first:
        with pytest.raises(SettingsError, match="already has a policy"):
            attach(model, NEAR)
        assert model.model.rotary_emb is first.rotary
        assert len(model.model._forward_pre_hooks) == 1
    attach(model, NEAR).detach()


def test_detaching_again_leaves_a_later_policy_alone(make_tiny_model):
    model = make_tiny_model()
    first = attach(model, FAR)
    first.detach()
    with attached(model, NEAR) as second:
        first.detach()
        assert model.model.rotary_emb is second.rotary


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rope_theta": 5e5}, "rope_theta"), ({"lambdas": (1.0,) * 4, "rotary_dim": 8}, "rotary_dim")],
)
def test_factors_of_another_model_are_refused(make_tiny_model, changes, message):
    model = make_tiny_model()
    rotary = model.model.rotary_emb
    with pytest.raises(FactorsError, match=message):
        attach(model, FAR.replace(**changes))
    assert model.model.rotary_emb is rotary
    assert not model.model._forward_pre_hooks


def test_unknown_mode_is_refused(make_tiny_model):
    model = make_tiny_model()
    rotary = model.model.rotary_emb
    with pytest.raises(SettingsError, match="mode"):
        attach(model, FAR, mode="fast")
    assert model.model.rotary_emb is rotary


def test_unsupported_model_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(UnsupportedModelError):
        attach(model, FAR)


def test_wrapped_or_headless_model_is_refused(make_tiny_model):
    model = make_tiny_model()
    wrapper = torch.nn.Module()
    wrapper.config, wrapper.base_model = model.config, torch.nn.ModuleDict({"model": model})
    for other in (wrapper, model.model):
        with pytest.raises(UnsupportedModelError, match="give the one inside of it"):
            attach(other, FAR)


def test_frequencies_in_half_precision_are_not_taken(make_tiny_model):
    model = make_tiny_model().to(torch.bfloat16)
    with attached(model, PLAIN) as attachment:
        logits_of(model, random_ids(60))
        cos, _ = attachment.rotary(torch.zeros(1, 1, 1), torch.tensor([[1000]]))
    exact = torch.cos(1000 * torch.from_numpy(PLAIN.inv_freq()))
    torch.testing.assert_close(cos[0, 0, :8].double(), exact, rtol=0, atol=1e-3)


# Windows


def test_window_is_that_of_the_whole_sequence(make_tiny_model):
    model = make_tiny_model()
    for length, factors in ((ORIGINAL, NEAR), (ORIGINAL + 1, FAR), (EXTENDED + 10, FAR)):
        ids = random_ids(length)
        assert torch.equal(under(model, SCHEDULE, ids), under(model, factors, ids))


@pytest.mark.parametrize("positions", ["given", "left to the model"])
@pytest.mark.parametrize("policy", [SCHEDULE, LATE, FactorSchedule((Window(ORIGINAL, NEAR), Window(EXTENDED, LATE)))])
def test_padded_rows_have_windows_of_their_own(make_tiny_model, policy, positions):
    model = make_tiny_model()
    lengths = [200, 50, 64, 65]
    ids, mask, position_ids = left_padded(random_ids(200, rows=4), lengths)
    given = {"position_ids": position_ids} if positions == "given" else {}
    together = under(model, policy, ids, attention_mask=mask, **given)
    for row, length in enumerate(lengths):
        assert_close(together[row, -length:], under(model, policy, ids[row : row + 1, -length:])[0], 1e-4)


def test_embeddings_instead_of_tokens(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(100)
    expected = under(model, SCHEDULE, ids)
    with attached(model, SCHEDULE), torch.inference_mode():
        embeddings = model.model.embed_tokens(ids)
        assert torch.equal(model(inputs_embeds=embeddings, use_cache=False).logits, expected)
        assert torch.equal(model.lm_head(model.model(ids, use_cache=False).last_hidden_state), expected)


def test_replicas_of_data_parallelism_have_windows_of_their_own(make_tiny_model):
    """Shallow copies, made before every pass, that share the hooks of the model: so Trainer uses several GPUs."""

    def replica(module):
        twin = module._replicate_for_data_parallel()
        for name, child in module.named_children():
            twin._modules[name] = replica(child)
        twin._parameters = dict(module._parameters)
        return twin

    model = make_tiny_model()
    near, far = random_ids(ORIGINAL), random_ids(EXTENDED)
    expected = [under(model, SCHEDULE, ids) for ids in (near, far)]
    with attached(model, SCHEDULE):
        replicas = [replica(model) for _ in range(2)]
        for twin, ids, logits in zip(replicas, (near, far), expected, strict=True):
            assert torch.equal(logits_of(twin, ids), logits)
        near_rotary, far_rotary = (twin.model.rotary_emb for twin in replicas)
        assert (near_rotary.length, far_rotary.length) == (ORIGINAL, EXTENDED)
        assert near_rotary._inv_freq is not far_rotary._inv_freq


def test_arguments_by_place(make_tiny_model):
    model = make_tiny_model()
    ids, mask, positions = left_padded(random_ids(100, rows=2), [100, 30])
    with attached(model, FactorSchedule((Window(ORIGINAL, NEAR), Window(EXTENDED, LATE)))), torch.inference_mode():
        by_name = model.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        assert torch.equal(model.model(ids, mask, positions).last_hidden_state, by_name)
        assert torch.equal(model.model(ids, mask).last_hidden_state, by_name)


def in_chunks(model, ids, cuts, cache=None):
    cache = DynamicCache(config=model.config) if cache is None else cache
    edges = [0, *cuts, ids.shape[1]]
    with torch.inference_mode():
        chunks = [
            model(ids[:, start:stop], past_key_values=cache, use_cache=True).logits for start, stop in pairwise(edges)
        ]
    return torch.cat(chunks, dim=1)


@pytest.mark.parametrize("cuts", [(40,), (64,), (100,), (10, 70)])
@pytest.mark.parametrize("policy", [SCHEDULE, LATE])
def test_pinned_chunks_equal_the_whole(make_tiny_model, policy, cuts):
    model = make_tiny_model()
    ids = random_ids(130)
    expected = under(model, policy, ids)
    with attached(model, policy, length=130):
        assert_close(in_chunks(model, ids, cuts), expected, 1e-4)


def test_pinned_length_holds_until_unpinned(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(30)
    with attached(model, SCHEDULE, length=EXTENDED) as attachment:
        pinned = logits_of(model, ids)
        attachment.unpin()
        free = logits_of(model, ids)
    assert torch.equal(pinned, under(model, FAR, ids))
    assert torch.equal(free, under(model, NEAR, ids))


def test_cache_that_grows_into_another_window_is_refused(make_tiny_model):
    model = make_tiny_model()
    with attached(model, SCHEDULE), pytest.raises(RunFailedError, match="grew to 65 tokens and into another window"):
        in_chunks(model, random_ids(65), (64,))


@pytest.mark.parametrize(("length", "cut"), [(ORIGINAL, 30), (130, ORIGINAL + 1)])
def test_cache_that_stays_in_its_window(make_tiny_model, length, cut):
    model = make_tiny_model()
    ids = random_ids(length)
    expected = under(model, SCHEDULE, ids)
    with attached(model, SCHEDULE):
        assert_close(in_chunks(model, ids, (cut,)), expected, 1e-4)


def test_precision_of_angles_follows_the_longest_row_with_its_cached_tokens(make_tiny_model):
    model = make_tiny_model()
    with attached(model, FAR) as attachment:
        in_chunks(model, random_ids(50), (30,))
        assert attachment.rotary.length == 50
    ids, mask, _ = left_padded(random_ids(200, rows=2), [50, 200])
    with attached(model, SCHEDULE) as attachment:
        logits_of(model, ids, attention_mask=mask)
        assert attachment.rotary.length == 200


def test_cache_of_unknown_origin_is_taken_for_one_of_this_policy(make_tiny_model):
    model = make_tiny_model()
    cache = DynamicCache(config=model.config)
    with attached(model, SCHEDULE):
        in_chunks(model, random_ids(60), (30,), cache)
        del cache.longrope_factors
        with pytest.raises(RunFailedError, match="into another window"):
            in_chunks(model, random_ids(10), (), cache)


def test_mask_that_hides_the_lengths_needs_a_pin(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(100)
    mask = torch.ones(1, 1, 100, 100, dtype=torch.bool).tril()
    expected = under(model, FAR, ids)
    assert_close(under(model, FAR, ids, attention_mask=mask), expected)
    with attached(model, SCHEDULE) as attachment:
        with pytest.raises(RunFailedError, match="mask"):
            logits_of(model, ids, attention_mask=mask)
        attachment.pin(100)
        assert_close(logits_of(model, ids, attention_mask=mask), expected)


def test_static_cache_is_counted_by_its_tokens(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(130)
    expected = under(model, SCHEDULE, ids)
    cache = StaticCache(config=model.config, max_cache_len=EXTENDED)
    with attached(model, SCHEDULE):
        assert_close(in_chunks(model, ids, (100,), cache), expected, 1e-4)
