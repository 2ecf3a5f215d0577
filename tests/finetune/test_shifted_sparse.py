"""Shifted sparse attention against its definition: one explicit mask over all positions for each head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_gradients import loss_and_gradients, token_ids
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longrope.exceptions import RunFailedError, SettingsError, UnsupportedModelError
from longrope.finetune.shifted_sparse import use_shifted_sparse

Models = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True)
def unchanged_interface() -> Iterator[None]:
    """Whatever a test does, transformers has its own functions afterwards."""
    before = dict(ALL_ATTENTION_FUNCTIONS)
    yield
    for name, function in before.items():
        ALL_ATTENTION_FUNCTIONS[name] = function


def visible(length: int, group: int, shift: bool) -> torch.Tensor:
    """Who sees whom by definition (L, L): nobody looks ahead, nobody looks across a cut."""
    cuts = set(range(group // 2 if shift else group, length, group))
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(query, -1, -1):
            mask[query, key] = True
            if key in cuts:
                break
    return mask


def masked_attention(group: int) -> Callable[..., tuple[torch.Tensor, None]]:
    """An attention function of transformers that does it the plain way."""

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[torch.Tensor, None]:
        heads, length = query.shape[1:3]
        key, value = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (key, value))
        allowed = torch.stack([visible(length, group, shift=head >= heads // 2) for head in range(heads)])
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~allowed, -torch.inf)
        return (scores.softmax(dim=-1) @ value).transpose(1, 2), None

    return attend


def check_against_masks(model: PreTrainedModel, length: int, group: int) -> None:
    model.train()
    ids = token_ids(length)
    shifted = use_shifted_sparse(model, length, group)
    ours = loss_and_gradients(model, input_ids=ids, labels=ids)
    shifted.remove()
    full = loss_and_gradients(model, input_ids=ids, labels=ids)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = masked_attention(shifted.group)
    plain = loss_and_gradients(model, input_ids=ids, labels=ids)
    assert abs(full["loss"] - plain["loss"]) > 1e-4  # the masks matter here
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3), (1, 1)], ids=["mha", "gqa", "mqa", "cut-kv-head", "one"]
)
@pytest.mark.parametrize(("length", "group"), [(48, 0), (45, 12), (33, 7)], ids=["quarters", "remainder", "odd"])
def test_equals_attention_with_an_explicit_mask(
    make_tiny_model: Models, heads: int, kv_heads: int, length: int, group: int
) -> None:
    model = make_tiny_model("llama", hidden_size=16 * heads, num_attention_heads=heads, num_key_value_heads=kv_heads)
    check_against_masks(model, length, group)


@pytest.mark.parametrize(
    "model_type",
    [
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "phi3",
        "olmo2",
        "granite",
        "gpt_neox",
        "stablelm",
        "smollm3",
        "glm4",
    ],
)
def test_every_architecture_that_attends_to_everything(make_tiny_model: Models, model_type: str) -> None:
    changes = {"attention_multiplier": 0.1} if model_type == "granite" else {}
    check_against_masks(make_tiny_model(model_type, **changes), 32, 8)


@pytest.fixture(scope="module")
def trained_model() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config("llama")).train()


@given(data=st.data(), length=st.integers(2, 40))
def test_no_token_is_seen_before_it_comes(trained_model: PreTrainedModel, data: st.DataObject, length: int) -> None:
    group, changed = data.draw(st.integers(2, length)), data.draw(st.integers(0, length - 1))
    model, ids = trained_model, token_ids(length, rows=1)
    other = ids.clone()
    other[0, changed] = (ids[0, changed] + 1) % 128
    shifted = use_shifted_sparse(model, length, group)
    try:
        with torch.no_grad():
            before, after = model(ids, use_cache=False).logits, model(other, use_cache=False).logits
    finally:
        shifted.remove()
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sp"), [(4, 4, 2), (4, 2, 2), (4, 1, 2), (8, 2, 4), (8, 4, 8), (6, 3, 3)]
)
def test_shards_of_heads_compute_what_one_process_does(
    make_tiny_model: Models, heads: int, kv_heads: int, sp: int
) -> None:
    model = make_tiny_model(
        "llama", hidden_size=16 * heads, num_attention_heads=heads, num_key_value_heads=kv_heads
    ).train()
    module = model.model.layers[0].self_attn
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 24, 16, generator=generator)
    key, value = (torch.randn(2, kv_heads, 24, 16, generator=generator) for _ in range(2))
    groups = module.num_key_value_groups

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        shifted = use_shifted_sparse(model, 24, 8, sp_rank=rank, sp_size=size)
        try:
            return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, scaling=0.25)[0]
        finally:
            shifted.remove()

    whole = attend(query, key, value, 0, 1)
    # What Ulysses hands out: consecutive heads, and copies of key-value heads where there are fewer than processes.
    copies = max(sp // kv_heads, 1)
    keys, values = (each.repeat_interleave(copies, dim=1).chunk(sp, dim=1) for each in (key, value))
    if copies > 1:
        module.num_key_value_groups = heads // sp
    shards = [attend(q, keys[rank], values[rank], rank, sp) for rank, q in enumerate(query.chunk(sp, dim=1))]
    module.num_key_value_groups = groups
    torch.testing.assert_close(torch.cat(shards, dim=2), whole, atol=1e-6, rtol=1e-6)


def test_eval_mode_and_other_models_keep_full_attention(make_tiny_model: Models) -> None:
    model, other = make_tiny_model("llama"), make_tiny_model("llama", seed=1).train()
    ids = token_ids(32)
    with torch.no_grad():
        full, others = model.eval()(ids).logits, other(ids).logits
        shifted = use_shifted_sparse(model, 32)
        assert torch.equal(model.eval()(ids).logits, full)
        assert torch.equal(other(ids).logits, others)
        assert not torch.equal(model.train()(ids).logits, full)
        mask = torch.ones_like(ids)
        mask[0, :5] = 0  # padding is only refused where it would be ignored
        model.eval()(ids, attention_mask=mask)
        shifted.remove()
        assert torch.equal(model.train()(ids).logits, full)


def test_the_kernel_sees_groups_and_no_mask(make_tiny_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model("llama").train()
    seen: list[int] = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, *args: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        assert attn_mask is None
        seen.append(query.shape[2])
        return sdpa(query, *args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    use_shifted_sparse(model, 64)
    model(token_ids(64), position_ids=torch.arange(64)[None])
    assert set(seen) == {16, 8}
    made = create_causal_mask(
        config=model.config,
        inputs_embeds=torch.zeros(1, 64, 64),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.arange(64, 128)[None],  # a shard of a sequence
    )
    assert made is None


def test_flash_attention_gets_groups_without_position_ids(make_tiny_model: Models) -> None:
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def flash(*args: Any, **kwargs: Any) -> Any:
        assert kwargs.get("position_ids") is None
        assert args[0].config._attn_implementation == "flash_attention_2"  # its code in transformers imports that
        return sdpa(*args, **kwargs)

    model = make_tiny_model("llama").train()
    ids = token_ids(32)
    shifted = use_shifted_sparse(model, 32)
    expected = loss_and_gradients(model, input_ids=ids, labels=ids)
    shifted.remove()
    ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = flash
    model.config._attn_implementation_internal = "flash_attention_2"
    use_shifted_sparse(model, 32)
    torch.testing.assert_close(loss_and_gradients(model, input_ids=ids, labels=ids), expected)


def test_removed_under_something_that_wrapped_it(make_tiny_model: Models) -> None:
    model = make_tiny_model("llama").train()
    ids = token_ids(32)
    full = model(ids).logits
    shifted = use_shifted_sparse(model, 32)
    inner = ALL_ATTENTION_FUNCTIONS["sdpa"]
    wrapper = lambda *args, **kwargs: inner(*args, **kwargs)  # noqa: E731
    ALL_ATTENTION_FUNCTIONS["sdpa"] = wrapper
    shifted.remove()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is wrapper
    assert torch.equal(model(ids).logits, full)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("deepseek_v3", {}),
        ("mistral", {"sliding_window": 16}),
        ("phi3", {"sliding_window": 16}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ],
)
def test_attention_that_groups_would_change_is_refused(
    make_tiny_model: Models, model_type: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"cannot train model type '{model_type}'.*--attention full"):
        use_shifted_sparse(make_tiny_model(model_type, **changes), 64)


def test_a_window_beyond_the_segment_does_no_harm(make_tiny_model: Models) -> None:
    check_against_masks(make_tiny_model("mistral", sliding_window=49), 48, 12)


def test_settings_and_batches_that_cannot_be(make_tiny_model: Models) -> None:
    model = make_tiny_model("llama").train()
    with pytest.raises(SettingsError, match=r"group is 65 for segments of 64; give from 2 tokens"):
        use_shifted_sparse(model, 64, 65)
    ids = token_ids(16)
    shifted = use_shifted_sparse(model, 16)
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    with pytest.raises(RunFailedError, match="without padding"):
        model(ids, attention_mask=padded)
    anew = torch.arange(8).repeat(2, 2)
    with pytest.raises(RunFailedError, match=r"start anew|without padding"):
        model(ids, position_ids=anew)
    with pytest.raises(RunFailedError, match="generate in eval mode"):
        model(ids[:, -1:], past_key_values=model(ids, use_cache=True).past_key_values)
    shifted.remove()
    model.set_attn_implementation("eager")
    with pytest.raises(SettingsError, match="cannot use kernel 'eager'"):
        use_shifted_sparse(model, 64)
