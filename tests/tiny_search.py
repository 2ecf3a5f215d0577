"""A model, documents and pools with which a whole search takes a second, for the tests of searches and commands."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longrope.runs.journal import Journal
from longrope.runs.progress import Progress
from longrope.search import outlook, racing, run
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.scorer import Scorer
from longrope.search.search import SearchReport, search
from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
from longrope.workers.pool import EvaluationPool, EvaluatorFactory, Failure
from longrope.workers.settings import ExecutionSettings

WINDOW = 64
DOCUMENTS = 12
SENTENCE = "the window of a model ends where its training did, and longer texts need slower rotations."
WORDS = SENTENCE.split()

Fails = Callable[[Task], str | None]
"""The reason why a task is to fail, or None."""


def text(seed: int, words: int) -> str:
    """Words in random order; a word is two or three tokens."""
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(words))


def write_documents(path: Path, count: int = DOCUMENTS, words: int = 400) -> Path:
    """JSON Lines with ``count`` documents of more than 512 tokens each."""
    path.write_text("".join(json.dumps({"text": text(seed, words)}) + "\n" for seed in range(count)))
    return path


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 300 entries; <s> goes in front."""
    special = ["<pad>", "<s>", "</s>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [text(0, 2000)],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def write_model(folder: Path, **changes: Any) -> Path:
    """A random llama with a window of 64 tokens: 2 layers, 2 heads of 16 dimensions.

    Its weights are large, so that what it predicts depends on the rotations.
    """
    config = LlamaConfig(
        **{
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": WINDOW,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **changes,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


SIZES = {"algorithm": "paper", "population": 8, "mutations": 3, "crossovers": 2, "iterations": 2, "parents": 4}
"""Of a search or a readjustment of 18 candidates."""


def settings(
    model: Path,
    documents: Path,
    output: Path,
    target_length: int = 128,
    algorithm: dict[str, Any] | None = None,
    **more: Any,
) -> SearchSettings:
    """A search of 18 candidates on two samples; ``algorithm`` and ``more`` change it."""
    sizes = {**SIZES, "n_hat": (0, 4, 16)}
    return SearchSettings(
        **{
            "model": str(model),
            "output": str(output),
            "target_length": target_length,
            "data": DataSettings(source=str(documents), samples=2, held_out=3),
            "execution": ExecutionSettings(workers=1),
            "algorithm": AlgorithmSettings(**{**sizes, **(algorithm or {})}),
            **more,
        }
    )


def coarse_to_fine(name: str, **more: Any) -> dict[str, Any]:
    """What makes the search of ``settings`` one from coarse to fine, of 15 candidates."""
    none = dict.fromkeys(("mutations", "crossovers", "iterations", "parents"))
    return {**none, "algorithm": name, "population": 4, "max_evaluations": 15, **more}


def eager_races(patch: pytest.MonkeyPatch) -> None:
    """Candidates of a model with random weights are dropped when they are behind, once four were scored in full."""
    patch.setattr(racing, "LEAST", 4)
    patch.setattr(outlook, "CHANCE", 0.5)


class InProcessPool(EvaluationPool[Task, BlockScore]):
    """Evaluates in this process, in the order asked; no starting of workers, and a test sees every task.

    Attributes:
        asked: all tasks so far.
    """

    def __init__(self, factory: EvaluatorFactory, fails: Fails = lambda task: None) -> None:
        self.workers = 1
        self.asked: list[Task] = []
        self._evaluator = factory()
        self._fails = fails

    def start(self) -> None:
        pass

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, BlockScore | Failure]]:
        for task in tasks:
            self.asked.append(task)
            reason = self._fails(task)
            yield task, Failure(reason) if reason else self._evaluator.evaluate(task)

    def close(self) -> None:
        pass


class Formula:
    """An evaluator without a model: the loss per token is a function of the candidate and the sample."""

    def __init__(self, loss: Callable[[Candidate, str], float], tokens: int = 10) -> None:
        self._loss, self._tokens = loss, tokens

    def __call__(self) -> Formula:
        return self

    def evaluate(self, task: Task) -> BlockScore:
        return BlockScore((self._loss(task.candidate, task.sample) * self._tokens,), self._tokens, 0.001)


class Table(Formula):
    """An evaluator without a model: the NLL of every block is a function of the candidate and the sample."""

    def __init__(
        self, blocks: Callable[[Candidate, str], Iterable[float]], tokens: int, seconds: float = 0.001
    ) -> None:
        self._blocks, self._tokens, self._seconds = blocks, tokens, seconds

    def evaluate(self, task: Task) -> BlockScore:
        return BlockScore(tuple(self._blocks(task.candidate, task.sample)), self._tokens, self._seconds)


@contextmanager
def scoring(
    journal: Path, evaluator: Formula, progress: Progress | None = None, fails: Fails = lambda task: None
) -> Iterator[tuple[Scorer, InProcessPool]]:
    """A scorer on a journal that is begun or gone on with, and the pool that sees its tasks."""
    pool = InProcessPool(evaluator, fails)
    with Journal.resume(journal, {}) if journal.exists() else Journal.create(journal, {}) as opened:
        yield Scorer(pool, opened, progress or Progress()), pool


@contextmanager
def in_process(fails: Fails = lambda task: None) -> Iterator[list[InProcessPool]]:
    """Runs inside the block start no workers; yields the pools that they open."""
    pools: list[InProcessPool] = []

    def make_pool(factory: EvaluatorFactory, *others: object) -> InProcessPool:
        pools.append(InProcessPool(factory, fails))
        return pools[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_pool", make_pool)
        yield pools


class Notes(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def search_in_process(
    given: SearchSettings, fails: Fails = lambda task: None, progress: Progress | None = None
) -> tuple[SearchReport, InProcessPool]:
    """A search without workers, and the pool that saw its tasks."""
    with in_process(fails) as pools:
        return search(given, progress), pools[0]
