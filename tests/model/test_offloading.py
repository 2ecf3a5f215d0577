"""Layers that are kept elsewhere: loaded once for all chunks of a sample, and no score changes."""

import gc
import shutil
import tempfile
import warnings

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook
from model_cases import random_ids
from tiny_models import rotary_dim
from transformers import AutoModelForCausalLM

from longrope.model import offloading, scoring_plan
from longrope.model.load import ModelSource
from longrope.model.offloading import computes_on, device_map, layers_kept, weights_held
from longrope.model.score import score_blocks
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

LENGTH = 300


@pytest.fixture
def folder(make_tiny_model, tmp_path):
    def save(model_type="llama", **changes):
        make_tiny_model(model_type, **changes).save_pretrained(tmp_path / model_type)
        return tmp_path / model_type

    return save


@pytest.fixture
def no_room(monkeypatch):
    """Main memory for no weights at all."""
    monkeypatch.setattr(offloading, "free_host_memory", lambda: 1000)


def offloaded(source):
    with pytest.warns(UserWarning, match="do not fit on cpu: the layers are read from disk, one at a time"):
        return source.load_model()


def factors(model_type="llama"):
    return [yarn(RopeFactors.identity(1e4, rotary_dim(model_type), 64), LENGTH)]


def loads(monkeypatch):
    """Counts how often weights are loaded."""
    count = []
    real = AlignDevicesHook.pre_forward

    def noted(self, module, *args, **kwargs):
        if self.offload:
            count.append(module)
        return real(self, module, *args, **kwargs)

    monkeypatch.setattr(AlignDevicesHook, "pre_forward", noted)
    return count


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gemma3_text", "gpt_neox"])
def test_scores_are_those_of_the_whole_model(folder, no_room, monkeypatch, model_type):
    source = ModelSource(str(folder(model_type)))
    monkeypatch.setattr(scoring_plan, "CPU_CHUNK", 100)
    whole = AutoModelForCausalLM.from_pretrained(source.name)
    model, tokens = offloaded(source), random_ids(LENGTH)[0]
    assert all(each.is_meta for each in model.base_model.layers.parameters())
    expected = score_blocks(whole, tokens, factors(model_type))
    np.testing.assert_array_equal(score_blocks(model, tokens, factors(model_type)), expected)
    assert all(each.is_meta for each in model.base_model.layers.parameters())


def test_weights_are_loaded_once_for_all_chunks(folder, no_room, monkeypatch):
    source = ModelSource(str(folder()))
    model, tokens = offloaded(source), random_ids(LENGTH)[0]
    seen = []
    model.model.layers[1].mlp.register_forward_pre_hook(
        lambda *args: seen.append([each.up_proj.weight.is_meta for each in (layer.mlp for layer in model.model.layers)])
    )
    count = loads(monkeypatch)
    monkeypatch.setattr(scoring_plan, "CPU_CHUNK", 100)
    score_blocks(model, tokens, factors())
    assert len(count) == len(set(count)) == 2 * 9  # seven projections and two norms of each layer
    assert seen == [[True, False]] * 3  # no other layer's beside its own


def test_what_is_written_to_disk_goes_with_the_model(folder, no_room, monkeypatch, tmp_path):
    """Experts that transformers makes one tensor of."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    model = offloaded(ModelSource(str(folder("qwen3_moe"))))
    assert list((tmp_path / "temporary").glob("*/*.safetensors"))
    del model
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


def test_the_weights_go_when_a_pass_fails(folder, no_room, monkeypatch):
    model = offloaded(ModelSource(str(folder())))
    monkeypatch.setattr(scoring_plan, "CPU_CHUNK", 100)

    def fail(*args):
        raise ValueError("no")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="no"):
        score_blocks(model, random_ids(LENGTH)[0], factors())
    hook.remove()
    assert all(each.is_meta for each in model.model.layers.parameters())
    assert all(
        each._hf_hook.offload for each in model.modules() if isinstance(each, torch.nn.Linear) and each.weight.is_meta
    )
    score_blocks(model, random_ids(LENGTH)[0], factors())


def test_a_layer_that_is_there_stays_as_it_is(make_tiny_model):
    layer = make_tiny_model().model.layers[0]
    weight = layer.mlp.up_proj.weight
    with weights_held(layer):
        assert layer.mlp.up_proj.weight is weight
    assert layer.mlp.up_proj.weight is weight


def test_what_fits_is_loaded_as_a_whole(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ModelSource(str(folder())).load_model()
    assert not any(each.is_meta for each in model.parameters())


def test_what_fits_depends_on_the_dtype(folder, monkeypatch):
    path = folder()
    numbers = sum(each.numel() for each in AutoModelForCausalLM.from_pretrained(path).parameters())
    monkeypatch.setattr(offloading, "free_host_memory", lambda: 3 * numbers)
    offloaded(ModelSource(str(path)))
    whole = ModelSource(str(path), dtype="bfloat16").load_model()
    assert not any(each.is_meta for each in whole.parameters())


@pytest.mark.parametrize(
    ("gpu", "host", "dtype", "kept"),
    [
        (1.2, 0.0, "float32", None),
        (1.1, 1.2, "float32", "cpu"),
        (1.1, 1.0, "float32", "disk"),
        (0.6, 0.0, "bfloat16", None),
        (0.5, 0.6, "bfloat16", "cpu"),
    ],
)
def test_layers_that_do_not_fit_on_a_gpu(folder, monkeypatch, gpu, host, dtype, kept):
    """Sizes are those of the weights as they are loaded, in units of the file."""
    path = folder()
    size = 4 * sum(each.numel() for each in AutoModelForCausalLM.from_pretrained(path).parameters())
    shutil.copy(path / "model.safetensors", path / "consolidated.safetensors")  # the same for other programs

    class Properties:
        total_memory = int(gpu * size)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(offloading, "free_host_memory", lambda: host * size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert layers_kept("a model", path, getattr(torch, dtype).itemsize, "cuda", 1.0) == kept


def test_the_map_names_every_part_once(make_tiny_model):
    assert device_map(make_tiny_model().config, "cuda", "cpu") == {
        "model.embed_tokens": "cuda",
        "model.layers": "cpu",
        "model.norm": "cuda",
        "model.rotary_emb": "cuda",
        "lm_head": "cuda",
    }
    assert device_map(make_tiny_model("gpt_neox").config, "cuda", "disk")["gpt_neox.layers"] == "disk"


def test_where_a_module_computes():
    module = torch.nn.Embedding(3, 2)
    assert computes_on(module) == torch.device("cpu")
    module = torch.nn.Embedding(3, 2, device="meta")
    for device, place in ((1, "cuda:1"), ("cpu", "cpu")):
        module._hf_hook = AlignDevicesHook(execution_device=device)
        assert computes_on(module) == torch.device(place)
