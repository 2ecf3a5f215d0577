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
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny_models import tiny_config
from tiny_search import write_documents, write_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from longrope.cli.main import main

torch.set_num_threads(1)

# The same examples on every run and machine; a slow machine is no reason to fail.
settings.register_profile(
    "longrope", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("longrope")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The file that takes longest begins at once, so that no process has to wait for it in the end.
    items.sort(key=lambda item: item.path.name != "test_distributed_runs.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def longrope(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `longrope ARGUMENTS` in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["longrope", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        assert isinstance(code, int)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


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
        config = tiny_config(model_type, rope, **changes)
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
