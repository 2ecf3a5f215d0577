"""What every test may rely on: no network, one thread, tiny models built in memory."""

import os

# Before torch and transformers are imported. Tests run in several processes, so each keeps to one thread.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)

from collections.abc import Callable
from pathlib import Path
from string import printable

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny_search import write_documents, write_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)

# The same examples on every run and machine; a slow machine is no reason to fail.
settings.register_profile(
    "longrope", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("longrope")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


PARTIAL = ("phi3", "glm4", "gpt_neox", "stablelm")
"""Architectures whose tiny models rotate half of each head."""

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHAPES: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, **_EXPERTS},
    "gemma2": {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 20.0,
    },
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.25, "embedding_multiplier": 2.0},
    "smollm3": {"num_hidden_layers": 3, "no_rope_layers": [1, 1, 0]},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        **_EXPERTS,
    },
}
"""What the tiny model of an architecture needs beside the common sizes."""


@pytest.fixture
def make_tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """Builds random llama models; keyword arguments change the configuration, ``seed`` the weights."""

    def make(seed: int = 0, **changes: object) -> LlamaForCausalLM:
        config = LlamaConfig(
            **{
                "vocab_size": 128,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
                **changes,
            }
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).float().eval()

    return make


@pytest.fixture
def tiny_llama(make_tiny_llama: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    """A random float32 llama, its own for every test: 2 layers, 4 heads of 16 dimensions, theta 10000, 64 positions."""
    return make_tiny_llama()


@pytest.fixture
def make_tiny_model() -> Callable[..., PreTrainedModel]:
    """Builds random models of any architecture, whose attention is sharp enough to tell positions apart.

    2 layers, 4 heads of 16 dimensions, 64 positions. ``rope`` adds to the rope parameters; other keyword arguments
    change the configuration. Equal seeds give equal weights, whatever the rope.
    """

    def make(
        model_type: str = "llama", seed: int = 0, rope: dict[str, object] | None = None, **changes: object
    ) -> PreTrainedModel:
        partial = {"partial_rotary_factor": 0.5} if model_type in PARTIAL else {}
        parameters: dict[str, object] = {"rope_type": "default", "rope_theta": 10000.0, **partial, **(rope or {})}
        if model_type == "gemma3_text":
            local = {"rope_type": "default", "rope_theta": 1000.0}
            parameters = {"full_attention": parameters, "sliding_attention": local}
        config = AutoConfig.for_model(
            model_type,
            **{
                "vocab_size": 128,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 64,
                "initializer_range": 0.15,
                "sliding_window": None,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
                "rope_parameters": parameters,
                **SHAPES.get(model_type, {}),
                **changes,
            },
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config).float().eval()

    return make


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character, <bos> in front; its ids fit the tiny llama's 128 entries."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*special, *printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random llama with a window of 64 tokens, and its tokenizer; not to be changed."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def documents_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents of more than 512 tokens as JSON Lines; not to be changed."""
    return write_documents(tmp_path_factory.mktemp("tiny") / "documents.jsonl")
