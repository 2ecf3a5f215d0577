"""What a user chooses for the suites that ask a model about documents of the user's own."""

from __future__ import annotations

from dataclasses import dataclass

from longrope.data.templates.chapter_summary import PROMPT
from longrope.exceptions import SettingsError
from longrope.schema import STRICT

DOCUMENT = "{document}"
"""Where the document stands in the prompt of a summary."""
_NAMED = {"start": 0.0, "middle": 0.5, "end": 1.0}


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Which records are asked about, and how answers are generated.

    Attributes:
        source: a .jsonl or .parquet file, a folder of them, or a Hugging Face dataset id.
        split: of a hub dataset, as are ``revision`` and ``config``.
        samples: records to draw; all where there are fewer.
        max_new_tokens: most tokens of an answer.
        chat_template: put the prompt into the tokenizer's chat template.
    """

    __pydantic_config__ = STRICT

    source: str
    split: str = "train"
    revision: str | None = None
    config: str | None = None
    samples: int = 100
    max_new_tokens: int
    chat_template: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; give at least 1")


@dataclass(frozen=True, kw_only=True)
class MultiDocumentQASettings(TaskSettings):
    """Questions with many documents, one of which holds the answer.

    Attributes:
        documents: numbers of documents to ask with, the one with the answer included.
        positions: where that one stands: 0 for first, 1 for last.
        question: field of the question.
        answers: field of an answer, or of a list of answers, any of which is right.
        contexts: field of all documents of a question, of which one is marked by ``isgold`` or ``hasanswer``.
        document: field of the document that holds the answer, in records without ``contexts``.
        distractors: field of a list of documents that do not, beside ``document``; may be missing.
    """

    max_new_tokens: int = 100
    documents: tuple[int, ...] = (20, 30, 50, 100)
    positions: tuple[float, ...] = (0.0, 0.5, 1.0)
    question: str = "question"
    answers: str = "answers"
    contexts: str = "ctxs"
    document: str = "document"
    distractors: str = "distractors"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.documents or min(self.documents) < 1:
            raise SettingsError(f"documents are {self.documents}; give numbers of at least 1, such as 20,50,100")
        if not self.positions or not all(0 <= position <= 1 for position in self.positions):
            raise SettingsError(f"positions are {self.positions}; give numbers from 0 (first) to 1 (last)")
        object.__setattr__(self, "documents", tuple(sorted(set(self.documents))))
        object.__setattr__(self, "positions", tuple(sorted(set(self.positions))))


@dataclass(frozen=True, kw_only=True)
class SummarisationSettings(TaskSettings):
    """Documents and summaries of them.

    Attributes:
        document: field of the document.
        summary: field of the summary that those of the model are compared with.
        prompt: what the model reads, with ``{document}`` where the document is to stand.
        stemmer: compare words by their stems (Porter's, for English).
    """

    max_new_tokens: int = 512
    document: str = "document"
    summary: str = "summary"
    prompt: str = PROMPT
    stemmer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt.count(DOCUMENT) != 1:
            raise SettingsError(
                f"the prompt has {DOCUMENT} {self.prompt.count(DOCUMENT)} times; write it once, where the document is "
                "to stand"
            )


def parse_documents(text: str) -> tuple[int, ...]:
    """Numbers of documents in a comma-separated list.

    Raises:
        SettingsError: if one is not a whole number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise SettingsError(f"documents {text!r} are not whole numbers; write for example 20,50,100")
    return tuple(int(part) for part in parts)


def parse_positions(text: str) -> tuple[float, ...]:
    """Positions in a comma-separated list: ``start``, ``middle``, ``end``, or numbers from 0 to 1.

    Raises:
        SettingsError: if one is none of these.
    """
    try:
        found = tuple(_NAMED[part] if part in _NAMED else float(part) for part in map(str.strip, text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 <= position <= 1 for position in found):
        raise SettingsError(
            f"positions {text!r} are not places from first to last; write for example 0,0.5,1 or start,middle,end"
        )
    return found
