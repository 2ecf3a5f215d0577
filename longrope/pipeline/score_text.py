"""Score the beginning of a text at several lengths, with what it took: ``longrope score``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from longrope.data.documents import read_documents
from longrope.data.samples import sample_from_text
from longrope.evaluation.methods import open_methods
from longrope.exceptions import RunFailedError, SettingsError
from longrope.finetune.flops import forward_flops
from longrope.finetune.model_shape import ModelShape
from longrope.model.load import ModelSource
from longrope.model.memory_retries import is_out_of_main_memory, is_out_of_memory
from longrope.model.score import perplexity, score_tokens
from longrope.model.split_model import peers_of
from longrope.pipeline.scoring_room import ScoringRoom
from longrope.runs.model import open_model
from longrope.runs.peak_memory import PeakMemory
from longrope.runs.progress import Progress
from longrope.workers.settings import ExecutionSettings

_CHARACTERS = 32
"""Of a text for every token that is wanted: no tokenizer makes so few tokens of ordinary text."""


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """One text under one method.

    Attributes:
        model: a folder or a hub id.
        text: a file or a folder of documents, or a Hugging Face dataset id; its documents are read one after the other.
        lengths: in tokens, from the beginning of the text.
        factors: a factor JSON.
        method: as in an evaluation; the model as it is, or under ``factors`` where they are given, when empty.
        revision: the model's commit, branch or tag on the hub.
    """

    model: str
    text: str
    lengths: Sequence[int]
    factors: str | None = None
    method: str = ""
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 2:
            raise SettingsError(f"lengths are {list(self.lengths)}; give some, each of at least 2 tokens")


@dataclass(frozen=True)
class Scored:
    """What a length scored, and what it took.

    Attributes:
        perplexity: of all tokens but the first.
        seconds: of the forward pass and its loss.
        memory: bytes at most above the loaded model, of all GPUs of this process, or of the process; None where that is
            not known. Of processes that score together, those of the first.
        flops: operations of the forward pass, with half of the square of attention.
    """

    length: int
    perplexity: float
    seconds: float
    memory: float | None
    flops: float


def score(settings: ScoreSettings, progress: Progress | None = None) -> Iterator[Scored]:
    """Score the first tokens of a text, the shortest length first.

    Raises:
        InvalidInputError: if something that was given cannot be used; nothing is scored then.
        RunFailedError: if memory runs out; what was scored before stands.
    """
    progress = progress or Progress()
    execution = settings.execution
    model = open_model(settings.model, execution, settings.revision)
    if model.source.on_gpu or (execution.gpus_per_worker and execution.device == "auto"):
        execution.check_gpus(torch.cuda.device_count())
    lengths = tuple(sorted(set(settings.lengths)))
    names = (settings.method,) if settings.method else ()
    [policy] = open_methods(model.rope, lengths, settings.factors, names, model.config).values()
    sample = sample_from_text(_beginning(settings.text, lengths[-1]), model.tokenizer, lengths[-1], settings.text)
    shape = ModelShape.of(model.config)
    room = ScoringRoom.of(model, execution, shape)
    if room.gpus > 1:
        progress.note(
            f"{execution.note_on_layers}; --sp {room.gpus}, with the whole model on each, shares the work instead"
        )
    foreseen = room.foreseen(lengths)
    if foreseen is not None:
        progress.note(foreseen)
    progress.note(f"loading {settings.model}")
    with _threads(execution.threads_per_worker), _loaded(model.source) as loaded:
        # What the first call allocates for good, and the time that it takes, are no part of a text's.
        first = min(512, lengths[0])
        with _memory_for(first, room):
            score_tokens(loaded, sample.tokens[:first], policy.factors_for(lengths[0]))
        for length in lengths:
            peak, started = PeakMemory(model.source.on_gpu), time.perf_counter()
            with _memory_for(length, room):
                nll = score_tokens(loaded, sample.tokens[:length], policy.factors_for(length))
            seconds = time.perf_counter() - started
            total = perplexity(float(nll.sum()), length - 1)
            yield Scored(length, total, seconds, peak.above, forward_flops(shape, length, length - 1))


@contextmanager
def _memory_for(length: int, room: ScoringRoom) -> Iterator[None]:
    """Raise RunFailedError where memory runs out in the block."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailedError(room.ran_out(length, is_out_of_main_memory(error))) from error


@contextmanager
def _loaded(source: ModelSource) -> Iterator[Any]:
    """The model, and the processes that score with this one, until the block ends."""
    model = source.load_model()
    try:
        yield model
    finally:
        peers = peers_of(model)
        if peers is not None:
            peers.close()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _beginning(source: str, tokens: int) -> str:
    parts, size = [], 0
    for document in read_documents(source):
        parts.append(document.text)
        size += len(document.text)
        if size > _CHARACTERS * tokens:
            break
    return "\n\n".join(parts)
