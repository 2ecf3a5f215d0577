"""Every row of the table: the same as transformers where it can do the same, and right where it cannot."""

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
    longrope_model,
    random_ids,
    scaled_model,
    under,
)
from tiny_models import rotary_dim, tiny_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Cohere2Config,
    FalconConfig,
    Gemma3Config,
    GPT2Config,
    Llama4TextConfig,
    LlavaConfig,
    Qwen2VLTextConfig,
    SmolVLMConfig,
)

import longrope
from longrope.exceptions import UnsupportedModelError
from longrope.export.huggingface import export_folder
from longrope.model.architectures import ARCHITECTURES, architecture_for
from longrope.model.attach import attached
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.model.score import score_blocks
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear, yarn
from longrope.rope.policy import FactorSchedule, Window

EVERY = sorted(ARCHITECTURES)
FIXED_TYPES = ("default", "linear", "yarn", "llama3")
NOT_TAKEN = [("phi3", kind) for kind in FIXED_TYPES if kind != "default"]  # by the config of transformers
FIXED = [
    (model_type, kind) for model_type in EVERY for kind in FIXED_TYPES if kind == "default" or model_type != "phi3"
]
# Layers that share a rotary module are rescaled as one by transformers; the tests of local layers look at these.
ONE_KIND_OF_LAYER = {"gemma2": {"layer_types": ["full_attention"] * 2}}


def factors_for(model_type, lambdas, **changes):
    pairs = rotary_dim(model_type) // 2
    return RopeFactors(tuple(lambdas[:pairs]), 1e4, 2 * pairs, ORIGINAL, **{"target_length": EXTENDED, **changes})


def three_windows(model_type):
    """Windows of 64, 96 and 256 tokens that differ in lambda and n_hat, with one attention factor."""
    return FactorSchedule(
        (
            Window(ORIGINAL, factors_for(model_type, SHORT, target_length=ORIGINAL, attention_factor=1.1)),
            Window(96, factors_for(model_type, [1, *LONG], target_length=96, n_hat=4, attention_factor=1.1)),
            Window(EXTENDED, factors_for(model_type, LONG, n_hat=8, attention_factor=1.1)),
        )
    )


@pytest.mark.parametrize("model_type", EVERY)
def test_row_finds_the_parts(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    row = architecture_for(model.config)
    rotary = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    assert row.model_type == model_type
    assert [row.rotary_of(model)] == rotary  # one, shared by all layers
    ids = random_ids(10)
    with torch.inference_mode():
        hidden = row.decoder_of(model)(ids, use_cache=False).last_hidden_state
        assert torch.equal(row.logits(model, hidden), model(ids, use_cache=False).logits)
    module = torch.nn.Identity()
    row.set_rotary(model, module)
    assert row.rotary_of(model) is module


@pytest.mark.parametrize("mode", ["hf", "exact"])
@pytest.mark.parametrize(("model_type", "kind"), FIXED)
def test_identity_changes_no_bit(make_tiny_model, model_type, kind, mode):
    model = scaled_model(make_tiny_model, model_type, kind)
    ids = random_ids(100, rows=2)
    before = logits_of(model, ids)
    assert torch.equal(under(model, read_rope(model.config).policy, ids, mode), before)


@pytest.mark.parametrize("length", [1, ORIGINAL, ORIGINAL + 1, EXTENDED])
@pytest.mark.parametrize("model_type", EVERY)
def test_identity_of_a_longrope_config_changes_no_bit(make_tiny_model, model_type, length):
    model = longrope_model(make_tiny_model, model_type, ONE_KIND_OF_LAYER.get(model_type))
    ids = random_ids(length)
    before = logits_of(model, ids)
    assert torch.equal(under(model, read_rope(model.config).policy, ids, "hf"), before)
    assert torch.equal(under(model, read_rope(model.config).policy, ids), before)


@pytest.mark.parametrize(("method", "kind"), [(linear, "linear"), (yarn, "yarn")])
@pytest.mark.parametrize("model_type", [each for each in EVERY if each != "phi3"])
def test_published_method_equals_the_config_that_names_it(make_tiny_model, model_type, method, kind):
    layers = ONE_KIND_OF_LAYER.get(model_type, {})
    plain = make_tiny_model(model_type, **layers)
    ids = random_ids(200)
    identity = read_rope(plain.config).identity()
    ours = under(plain, method(identity, EXTENDED), ids)
    assert_close(ours, logits_of(scaled_model(make_tiny_model, model_type, kind, **layers), ids), 2e-4)
    assert difference(ours, logits_of(plain, ids)) > 1e-2


@pytest.mark.parametrize("model_type", EVERY)
def test_schedule_equals_a_longrope_config_on_both_sides(make_tiny_model, model_type):
    layers = ONE_KIND_OF_LAYER.get(model_type, {})
    plain = make_tiny_model(model_type, **layers)
    scaled = longrope_model(make_tiny_model, model_type, layers, attention_factor=1.1)
    schedule = read_rope(scaled.config).policy
    sides = []
    for length in (ORIGINAL, ORIGINAL + 1):
        ids = random_ids(length)
        sides.append(under(plain, schedule, ids, "hf"))
        assert_close(sides[-1], logits_of(scaled, ids))
        assert difference(sides[-1], logits_of(plain, ids)) > 1e-2
    assert difference(sides[0], sides[1][:, :-1]) > 1e-2


@pytest.mark.parametrize("model_type", EVERY)
def test_everything_is_put_back(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    row = architecture_for(model.config)
    decoder, rotary, before = row.decoder_of(model), row.rotary_of(model), logits_of(model, random_ids(100))
    with attached(model, factors_for(model_type, LONG)) as attachment:
        assert row.rotary_of(model) is attachment.rotary
        assert not torch.equal(logits_of(model, random_ids(100)), before)
    assert row.rotary_of(model) is rotary
    assert not decoder._forward_pre_hooks
    assert not decoder._forward_hooks
    assert not any(layer._forward_pre_hooks for layer in decoder.layers)
    assert not {"generate", "prepare_inputs_for_generation"} & vars(model).keys()
    assert torch.equal(logits_of(model, random_ids(100)), before)


@pytest.mark.parametrize("model_type", EVERY)
def test_score_is_that_of_the_causal_model(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    ids = random_ids(200)
    factors = factors_for(model_type, LONG, n_hat=4)
    logits = under(model, factors, ids)
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    torch.testing.assert_close(
        score_blocks(model, ids[0], [factors]).sum(), expected.double().numpy()[()], rtol=1e-5, atol=0
    )


# Layers that attend to a sliding window by design


@pytest.mark.parametrize("kind", FIXED_TYPES)
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_local_layers_keep_the_rope_of_the_model(make_tiny_model, model_type, kind):
    local = scaled_model(make_tiny_model, model_type, kind, layer_types=["sliding_attention"] * 2)
    ids = random_ids(100)
    if model_type == "gemma3_text":  # its rotary module has to know both kinds
        local = scaled_model(make_tiny_model, model_type, kind)
        attention = [layer.self_attn for layer in local.model.layers]
        attention[1].o_proj.weight.data.zero_()
    before = logits_of(local, ids)
    assert torch.equal(under(local, factors_for(model_type, LONG, attention_factor=1.3), ids), before)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_global_layers_beside_local_ones_are_rescaled(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    ids = random_ids(100)
    before = logits_of(model, ids)
    assert difference(under(model, factors_for(model_type, LONG), ids), before) > 1e-2


def test_lists_in_the_config_of_gemma2_are_for_its_global_layers(make_tiny_model):
    schedule = three_windows("gemma2")
    plain, ids = make_tiny_model("gemma2"), random_ids(100)
    scaled = longrope_model(make_tiny_model, "gemma2")
    assert torch.equal(under(scaled, schedule, ids), under(plain, schedule, ids))


# Generation, saving and loading


@pytest.mark.parametrize("model_type", EVERY)
def test_generation_across_the_boundaries_equals_no_cache(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    ids = random_ids(ORIGINAL - 6)
    options = {"do_sample": False, "max_new_tokens": 44, "eos_token_id": None}
    with attached(model, three_windows(model_type)):
        cached = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        without = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    assert cached.shape[1] == ORIGINAL + 38  # into the third window
    assert cached.tolist() == without.tolist()


@pytest.mark.parametrize("model_type", EVERY)
def test_exported_folder_loads_as_the_same_model(make_tiny_model, model_type, tmp_path):
    """With the whole policy in ours; in plain transformers with what its two lists and one factor can say."""
    model = make_tiny_model(model_type)
    model.save_pretrained(tmp_path / "base")
    windows = three_windows(model_type).windows
    flat = FactorSchedule((windows[0], Window(EXTENDED, windows[2].factors.replace(n_hat=0))))
    folder = export_folder(ModelSource(str(tmp_path / "base")), flat, tmp_path / "extended").folder
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ours = longrope.load(folder, mode="hf")
    for length in (ORIGINAL, EXTENDED):
        ids = random_ids(length)
        expected = under(model, flat, ids, "hf")
        assert_close(logits_of(ours, ids), expected)
        if model_type != "gemma2":  # it would rescale its local layers as well
            assert_close(logits_of(plain, ids), expected)
        assert difference(expected, logits_of(model, ids)) > 1e-2


def test_softmax_scale_of_deepseek_is_kept(make_tiny_model, tmp_path):
    """Its yarn also changes the scale of attention, when the model is built; a new rope type must not undo that."""
    yarn_rope = {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    base = make_tiny_model("deepseek_v3", rope=yarn_rope)
    scale = base.model.layers[0].self_attn.scaling
    assert scale != pytest.approx(32**-0.5)
    base.save_pretrained(tmp_path / "base")
    present = read_rope(base.config).present
    factors = present.replace(lambdas=tuple(2 * each for each in present.lambdas), target_length=EXTENDED)
    folder = export_folder(ModelSource(str(tmp_path / "base")), factors, tmp_path / "extended").folder
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.model.layers[0].self_attn.scaling == scale
    ids = random_ids(100)
    assert_close(logits_of(plain, ids), under(base, factors, ids, "hf"))


def test_language_model_of_a_multimodal_model(tmp_path):
    """The recipe of docs/architectures.md."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    whole = AutoModelForImageTextToText.from_config(
        LlavaConfig(vision_config=vision, text_config=tiny_config("llama"))
    ).eval()
    text = AutoModelForCausalLM.from_config(whole.config.text_config, dtype=whole.dtype)
    text.model, text.lm_head = whole.model.language_model, whole.lm_head
    text.save_pretrained(tmp_path)
    ids = random_ids(100)
    factors = factors_for("llama", LONG)
    extended = longrope.load(tmp_path, FactorSchedule((Window(EXTENDED, factors),)))
    whole.model.language_model.rotary_emb = extended.longrope.rotary
    extended.longrope.rotary.pin([factors], 100)
    assert_close(logits_of(extended, ids), logits_of(whole, ids))


# What is not in the table


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(), "'gpt2' has no rope_parameters"),
        (Cohere2Config(), "'cohere2' applies RoPE in its sliding-window layers only"),
        (Llama4TextConfig(), "'llama4_text' applies RoPE in its chunked layers only"),
        (FalconConfig(), "'falcon' is not in the table"),
        (Gemma3Config(), "'gemma3' is multimodal; save its language model, of type 'gemma3_text'"),
        (LlavaConfig(), "'llava' is multimodal; save its language model, of type 'llama'"),
        (SmolVLMConfig(), "'smolvlm' is multimodal; save its language model, of type 'llama'"),
        (Qwen2VLTextConfig(rope_parameters={"rope_type": "default", "mrope_section": [1, 1]}), "M-RoPE"),
        (object(), "None has no rope_parameters"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_other_architectures_are_refused(config, message):
    with pytest.raises(UnsupportedModelError, match=message) as refusal:
        architecture_for(config)
    assert "\n" not in str(refusal.value)
