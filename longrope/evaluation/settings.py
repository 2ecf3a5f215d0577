"""What a user chooses for an evaluation; every name is also an option of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from longrope.evaluation.perplexity import PROTOCOLS, STRIDE
from longrope.exceptions import SettingsError
from longrope.workers.settings import ExecutionSettings


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """One evaluation of one model.

    Attributes:
        model: a folder or a hub id.
        output: folder that receives the journal, the records and the table.
        lengths: in tokens; one, the longest that a text may have, for suites whose data decide the lengths.
        factors: the factor JSON of the method ``longrope``.
        methods: names; the model as it is, or under ``factors`` where they are given, when empty.
        resume: go on with the run in ``output``.
    """

    model: str
    output: str
    lengths: tuple[int, ...]
    factors: str | None = None
    methods: tuple[str, ...] = ()
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = 0
    revision: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if not self.lengths:
            raise SettingsError("there are no lengths to measure; give some, such as --lengths 4k,32k,128k")
        if min(self.lengths) < 2:
            raise SettingsError(f"length {min(self.lengths)} has nothing to predict; give at least 2 tokens")
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))


@dataclass(frozen=True, kw_only=True)
class PerplexitySettings:
    """How perplexity is measured, and on which documents.

    Attributes:
        source: a file, a folder, or a Hugging Face dataset id.
        field: the text field of JSONL, parquet and datasets.
        samples: documents.
        document_length: tokens of each; the longest length when not given.
        protocol: ``full`` or ``sliding``.
        stride: tokens that a sliding window moves by.
        last: tokens at the end of each document that count under ``full``; 0 for all that the shortest length predicts.
        concatenate: join documents instead of asking for long ones.
    """

    source: str
    field: str = "text"
    split: str = "train"
    revision: str | None = None
    config: str | None = None
    samples: int = 10
    document_length: int | None = None
    protocol: str = "full"
    stride: int = STRIDE
    last: int = 0
    concatenate: bool = False
    max_documents: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise SettingsError(f"protocol {self.protocol!r} is not known; use {' or '.join(PROTOCOLS)}")
        for name, least in (("samples", 1), ("stride", 1), ("last", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} is {getattr(self, name)}; give at least {least}")


@dataclass(frozen=True, kw_only=True)
class PasskeySettings:
    """How passkeys are hidden.

    Attributes:
        trials: texts at each length.
        introduction: whether the text begins by announcing the pass key, as in the paper.
    """

    trials: int = 10
    introduction: bool = True

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise SettingsError(f"trials is {self.trials}; give at least 1")
