"""The modeling file: with torch and transformers alone, the same model as ours with all its windows."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import rotary_dim
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import longrope
from longrope.exceptions import SettingsError, UnsupportedModelError
from longrope.export.code import CODE_FILE, add_code, remove_code
from longrope.export.huggingface import set_longrope
from longrope.model.architectures import ARCHITECTURES
from longrope.model.attach import attached
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

WINDOWS = (64, 96, 256)
LAMBDAS = ([1.0, 1.0, 1.1, 1.3], [1.0, 1.2, 1.5, 2.0], [1.0, 1.5, 2.5, 4.1])


@pytest.fixture(autouse=True)
def modules_of_its_own(tmp_path, monkeypatch):
    """Where transformers keeps the code it was trusted with."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def three_windows(model_type="llama"):
    """n_hat 0, 4 and 8, and attention factors that differ."""
    pairs = rotary_dim(model_type) // 2
    windows = []
    for index, (length, few) in enumerate(zip(WINDOWS, LAMBDAS, strict=True)):
        lambdas = tuple(value for value in few for _ in range(pairs // 4))
        factors = RopeFactors(lambdas, 1e4, 2 * pairs, 64, length, 4 * index, attention_factor=1 + index / 10)
        windows.append(Window(length, factors))
    return FactorSchedule(tuple(windows))


def code_folder(model, schedule, folder):
    model.save_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    set_longrope(config, schedule)
    add_code(folder, config, schedule)
    config.save_pretrained(folder)
    return folder


def trusted(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def tokens(length, rows=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 128, (rows, length), generator=generator)


@torch.inference_mode()
def logits_of(model, ids, **inputs):
    return model(ids, use_cache=False, **inputs).logits


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_same_logits_as_ours_in_every_window(make_tiny_model, tmp_path, model_type):
    base = make_tiny_model(model_type)
    schedule = three_windows(model_type)
    theirs = trusted(code_folder(base, schedule, tmp_path / "folder"))
    for length in (30, 64, 65, 96, 97, 256):
        ids = tokens(length)
        plain = logits_of(base, ids)
        with attached(base, schedule):
            expected = logits_of(base, ids)
        assert_close(logits_of(theirs, ids), expected)
        assert (expected - plain).abs().max() > 1e-3


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma2", "gemma3_text"])
def test_same_generation_as_ours_across_windows(make_tiny_model, tmp_path, model_type):
    base = make_tiny_model(model_type)
    schedule = three_windows(model_type)
    theirs = trusted(code_folder(base, schedule, tmp_path / "folder"))
    lengths = [60, 20, 35]
    mask = torch.stack([(torch.arange(60) >= 60 - length).long() for length in lengths])
    ids = tokens(60, rows=3).masked_fill(mask == 0, 0)
    options = {"attention_mask": mask, "max_new_tokens": 48, "eos_token_id": None, "do_sample": False}
    with attached(base, schedule):
        expected = base.generate(ids, **options)
    assert theirs.generate(ids, **options).tolist() == expected.tolist()
    assert theirs.generate(ids, **options, use_cache=False).tolist() == expected.tolist()
    static = theirs.generate(ids, **options, cache_implementation="static")
    assert static.tolist() == expected.tolist()


def test_beams_and_sampling(make_tiny_model, tmp_path):
    base, schedule = make_tiny_model(), three_windows()
    theirs = trusted(code_folder(base, schedule, tmp_path / "folder"))
    ids = tokens(60)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 20, "eos_token_id": None}
    for more in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        torch.manual_seed(0)
        cached = theirs.generate(ids, **options, **more)
        torch.manual_seed(0)
        assert cached.tolist() == theirs.generate(ids, **options, **more, use_cache=False).tolist()


def test_embeddings_and_arguments_by_place(make_tiny_model, tmp_path):
    theirs = trusted(code_folder(make_tiny_model(), three_windows(), tmp_path / "folder"))
    ids = tokens(60)
    mask = torch.stack([torch.ones(60), torch.arange(60) >= 40]).long()
    options = {"max_new_tokens": 40, "eos_token_id": None, "do_sample": False}
    embeddings = theirs.get_input_embeddings()(ids).detach()
    expected = theirs.generate(ids, attention_mask=mask[:1], **options)[0, 60:].tolist()
    for beside in ({}, {"input_ids": tokens(60, seed=1)}):
        generated = theirs.generate(inputs_embeds=embeddings, attention_mask=mask[:1], **beside, **options)
        assert generated[0, -40:].tolist() == expected
    with torch.inference_mode():
        both = tokens(60, rows=2)
        by_name = theirs.model(input_ids=both, attention_mask=mask).last_hidden_state
        assert torch.equal(theirs.model(both, mask).last_hidden_state, by_name)


def test_threads_take_turns(make_tiny_model, tmp_path):
    theirs = trusted(code_folder(make_tiny_model(), three_windows(), tmp_path / "folder"))

    def generate(ids):
        options = {"max_new_tokens": 20, "eos_token_id": None, "do_sample": False}
        return theirs.generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()

    prompts = [tokens(length, seed=length) for length in (60, 20, 70)]
    expected = [generate(ids) for ids in prompts]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(generate, prompts)) == expected


def test_angles_of_long_sequences_are_formed_in_float64(make_tiny_model, tmp_path):
    base, schedule = make_tiny_model(), three_windows()
    theirs = trusted(code_folder(base, schedule, tmp_path / "folder"))
    rotary, far = theirs.model.rotary_emb, 2_000_000
    positions = torch.tensor([[0, 7, 8, far]])
    rotary.rows, rotary.length = (2,), far + 1
    cos, _ = rotary(torch.zeros(1, 4, 1), positions)
    factors = schedule.windows[2].factors
    exact = torch.cos(positions[0, 3].double() * torch.from_numpy(factors.inv_freq())) * factors.attention_factor
    torch.testing.assert_close(cos[0, 3, :8].double(), exact, rtol=0, atol=1e-6)


def test_what_would_mix_windows_is_refused(make_tiny_model, tmp_path):
    theirs = trusted(code_folder(make_tiny_model(), three_windows(), tmp_path / "folder"))
    ids = tokens(60)
    for name in ("prompt_lookup_num_tokens", "prefill_chunk_size"):
        with pytest.raises(ValueError, match=f"{name} would mix windows"):
            theirs.generate(ids, max_new_tokens=4, **{name: 4})
    with pytest.raises(ValueError, match="continuous batching would mix windows"):
        theirs.generate_batch([[5, 6, 7]])
    with torch.inference_mode():
        cache = theirs(ids).past_key_values
        with pytest.raises(RuntimeError, match="grew into another window"):
            theirs(tokens(10), past_key_values=cache)
    with pytest.raises(SettingsError, match="trust_remote_code=False"):
        longrope.attach(theirs, three_windows())


def test_saved_again_it_is_the_same_model(make_tiny_model, tmp_path):
    theirs = trusted(code_folder(make_tiny_model(), three_windows(), tmp_path / "folder"), dtype="bfloat16")
    theirs.save_pretrained(tmp_path / "again")
    ids = tokens(100)
    assert torch.equal(logits_of(trusted(tmp_path / "again"), ids), logits_of(theirs, ids))


def test_without_trust_the_two_lists_hold(make_tiny_model, tmp_path):
    schedule = three_windows()
    folder = code_folder(make_tiny_model(), schedule, tmp_path / "folder")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.config.rope_parameters["long_factor"] == list(schedule.windows[-1].factors.lambdas)
    assert plain.config.architectures == ["LlamaForCausalLM"]


def test_without_this_package(make_tiny_model, tmp_path):
    base, schedule = make_tiny_model(), three_windows()
    folder = code_folder(base, schedule, tmp_path / "folder")
    ids = tokens(100)
    with attached(base, schedule):
        expected = logits_of(base, ids)
    torch.save(ids, tmp_path / "ids.pt")
    program = f"""
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
with torch.inference_mode():
    torch.save(model(torch.load({str(tmp_path / "ids.pt")!r})).logits, {str(tmp_path / "logits.pt")!r})
assert not any(name.split(".")[0] == "longrope" for name in sys.modules)
"""
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=tmp_path,
        env={"PATH": "", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert_close(torch.load(tmp_path / "logits.pt"), expected)


def test_code_that_the_model_brings_is_no_longer_run(make_tiny_model, tmp_path):
    """As the published Phi-3 models do, with a config class of their own."""
    base = make_tiny_model("phi3")
    base.config.auto_map = {"AutoConfig": "configuration_other.Config", "AutoModelForCausalLM": "modeling_other.Model"}
    schedule = three_windows("phi3")
    theirs = trusted(code_folder(base, schedule, tmp_path / "folder"))
    assert type(theirs).__name__ == "LongRopePhi3ForCausalLM"
    with attached(base, schedule):
        expected = logits_of(base, tokens(100))
    assert_close(logits_of(theirs, tokens(100)), expected)


def test_config_of_another_kind_is_refused(make_tiny_model, tmp_path):
    class OtherConfig(LlamaConfig):
        pass

    with pytest.raises(UnsupportedModelError, match="read by code of the model's own \\(OtherConfig\\)"):
        add_code(tmp_path, OtherConfig(), three_windows())
    assert not (tmp_path / CODE_FILE).exists()


def test_other_code_is_not_removed(make_tiny_model):
    config = make_tiny_model().config
    config.auto_map = {"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"}
    remove_code(config)
    assert config.auto_map == {"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"}


def test_code_can_be_added_again_and_removed(make_tiny_model, tmp_path):
    config = make_tiny_model().config
    config.auto_map = {"AutoTokenizer": "tokenization_other.Other"}
    for _ in range(2):
        add_code(tmp_path, config, three_windows())
    assert config.longrope["windows"][2]["n_hat"] == 8
    remove_code(config)
    assert config.auto_map == {"AutoTokenizer": "tokenization_other.Other"}
    assert not hasattr(config, "longrope")
