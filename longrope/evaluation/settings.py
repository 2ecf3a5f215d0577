"""What a user chooses for an evaluation; every name is also an option of the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longrope.data.needles import DIGITS
from longrope.evaluation.perplexity import PROTOCOLS, STRIDE
from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.schema import STRICT, Lengths, OptionalLength
from longrope.workers.settings import ExecutionSettings


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """One evaluation of one model.

    Attributes:
        model: a folder or a hub id.
        output: folder that receives the journal, the records and the table.
        lengths: in tokens; one, the longest that a text may have, for suites whose data decide the lengths, and none
            for the harness, which measures in the windows that its inputs can fall into.
        factors: the factor JSON of the method ``longrope``.
        methods: names; the model as it is, or under ``factors`` where they are given, when empty.
        resume: go on with the run in ``output``.
    """

    __pydantic_config__ = STRICT

    model: str
    output: str
    lengths: Lengths = ()
    factors: str | None = None
    methods: tuple[str, ...] = ()
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = 0
    revision: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.lengths and min(self.lengths) < 2:
            raise SettingsError(f"length {min(self.lengths)} has nothing to predict; give at least 2 tokens")
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))


@dataclass(frozen=True, kw_only=True)
class DocumentSettings:
    """Long documents to measure on.

    Attributes:
        source: a file, a folder, or a Hugging Face dataset id.
        field: the text field of JSONL, parquet and datasets.
        samples: documents.
        concatenate: join documents instead of asking for long ones.
    """

    __pydantic_config__ = STRICT

    source: str
    field: str = "text"
    split: str = "train"
    revision: str | None = None
    config: str | None = None
    samples: int = 10
    concatenate: bool = False
    max_documents: int | None = None

    def __post_init__(self) -> None:
        _at_least(1, "samples", self.samples)


@dataclass(frozen=True, kw_only=True)
class PerplexitySettings(DocumentSettings):
    """How perplexity is measured.

    Attributes:
        document_length: tokens of each; the longest length when not given.
        protocol: ``full`` or ``sliding``.
        stride: tokens that a sliding window moves by.
        last: tokens at the end of each document that count under ``full``; 0 for all that the shortest length predicts.
    """

    document_length: OptionalLength = None
    protocol: str = "full"
    stride: int = STRIDE
    last: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in PROTOCOLS:
            raise SettingsError(f"protocol {self.protocol!r} is not known; use {' or '.join(PROTOCOLS)}")
        _at_least(1, "stride", self.stride)
        _at_least(0, "last", self.last)

    def tokens(self, lengths: Sequence[int]) -> int:
        """Tokens of each document.

        Args:
            lengths: that are measured, as far as the model's attention sees them.

        Raises:
            SettingsError: if the numbers exclude each other.
        """
        shortest, longest = min(lengths), max(lengths)
        tokens = self.document_length or longest
        if tokens < longest:
            raise SettingsError(
                f"documents of {format_length(tokens)} tokens are shorter than the length {format_length(longest)}; "
                "give a larger --document-length, or leave it away"
            )
        if self.last >= shortest:
            raise SettingsError(
                f"the last {self.last} tokens cannot all be predicted at length {format_length(shortest)}; give at "
                f"most --last {shortest - 1}"
            )
        return tokens


@dataclass(frozen=True, kw_only=True)
class NeedlePerplexitySettings(DocumentSettings):
    """How needle-driven perplexity is measured.

    Attributes:
        digits: of the hidden number.
    """

    digits: int = DIGITS

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, "digits", self.digits)


@dataclass(frozen=True, kw_only=True)
class NeedleSettings:
    """Needles in a haystack.

    Attributes:
        haystack: a file, a folder, or a Hugging Face dataset id.
        field: the text field of JSONL, parquet and datasets.
        depth_interval: percent of the text from one depth to the next, which begin with 0 and end with 100.
        digits: of the hidden number.
        trials: texts at each length and depth.
    """

    __pydantic_config__ = STRICT

    haystack: str
    field: str = "text"
    split: str = "train"
    revision: str | None = None
    config: str | None = None
    depth_interval: float = 10
    digits: int = DIGITS
    trials: int = 1

    def __post_init__(self) -> None:
        if not 0.1 <= self.depth_interval <= 100:
            raise SettingsError(f"depth-interval is {self.depth_interval:g} percent; give 0.1 to 100")
        _at_least(1, "digits", self.digits)
        _at_least(1, "trials", self.trials)

    def depths(self) -> tuple[float, ...]:
        """Every depth, from 0 to 1."""
        steps = math.ceil(100 / self.depth_interval - 1e-9)
        return tuple(round(min(step * self.depth_interval / 100, 1.0), 4) for step in range(steps + 1))


@dataclass(frozen=True, kw_only=True)
class PasskeySettings:
    """How passkeys are hidden.

    Attributes:
        trials: texts at each length.
        introduction: whether the text begins by announcing the pass key, as in the paper.
    """

    __pydantic_config__ = STRICT

    trials: int = 10
    introduction: bool = True

    def __post_init__(self) -> None:
        _at_least(1, "trials", self.trials)


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """Which tasks of lm-evaluation-harness are run, and how.

    Attributes:
        tasks: names of tasks, groups or tags, or paths of YAML files.
        include_path: folders with further tasks.
        max_length: tokens of an input at most; the longest window when not given.
        lengths: that tasks which make their own texts (RULER) make them for; ``max_length`` when empty.
        num_fewshot: examples before each question; as each task says when not given.
        limit: documents of each task; all when not given.
        batch_size: sequences of a batch at most.
        chat_template: write prompts as a conversation, by the tokenizer's template.
        metadata: what tasks that make their own texts take beside the lengths and the tokenizer.
    """

    __pydantic_config__ = STRICT

    tasks: tuple[str, ...]
    include_path: tuple[str, ...] = ()
    max_length: OptionalLength = None
    lengths: Lengths = ()
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    chat_template: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise SettingsError("there are no tasks to run; give some, such as --tasks arc_challenge,hellaswag")
        for name, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"{name.replace('_', ' ')} is {value}; give at least {least}")
        if "max_seq_lengths" in self.metadata:
            raise SettingsError("lengths are not given by metadata; give --lengths")
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise SettingsError(f"{name} is {value}; give at least {least}")
