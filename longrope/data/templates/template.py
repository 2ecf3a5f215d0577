"""What a template is: how the fields of a record become the text of a document, and where its loss counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from longrope.data.documents import field_text, require_field
from longrope.data.records import Record
from longrope.data.tokens import Tokens
from longrope.exceptions import SettingsError

LOSSES = ("answer", "all")


@dataclass(frozen=True)
class Piece:
    """A part of a document: text, or tokens that are ready, and whether the loss counts on it."""

    content: str | Tokens
    counts: bool = True


@dataclass(frozen=True)
class Surroundings:
    """What a record may be joined with.

    Attributes:
        key: decides what is drawn for this record in this epoch.
        others: the other records of its block in a random order.
    """

    key: tuple[str | int, ...]
    others: Callable[[], Iterator[Record]]


@dataclass(frozen=True, kw_only=True)
class Template(ABC):
    """How the records of a source become documents. Its fields are the options of the mixture file."""

    name: ClassVar[str]
    whole: ClassVar[bool] = True
    """Whether documents must not be split over segments: an answer without its question teaches guessing."""
    packs: ClassVar[bool] = False
    """Whether a document is filled with one record after the other."""

    @property
    def text_field(self) -> str | None:
        """The field that the text of a text file stands for; None where text files do not serve."""
        return None

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The fields that are needed; None for all."""
        return None

    @abstractmethod
    def pieces(self, record: Record, surroundings: Surroundings) -> tuple[Piece, ...]:
        """The document that ``record`` makes; nothing if it holds no text.

        Raises:
            DataError: if a field is missing or not of its kind.
        """


@dataclass(frozen=True, kw_only=True)
class AnswerTemplate(Template):
    """A prompt and its answer.

    Attributes:
        loss: ``answer`` counts the loss on answers only, ``all`` on prompts too.
    """

    loss: str = "answer"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise SettingsError(f"loss {self.loss!r} of template {self.name!r} is not known; use {', '.join(LOSSES)}")

    def pair(self, prompt: str, answer: str) -> tuple[Piece, Piece]:
        """The two pieces. ``prompt`` ends where a model in use begins to write."""
        return Piece(prompt, self.loss == "all"), Piece(answer)


def text_in(record: Record, field: str) -> str:
    """The text in ``field``, without blanks around it; empty if it is null or blank."""
    return (field_text(record.fields, field, record.name) or "").strip()


def optional_text_in(fields: Mapping[str, Any], field: str, where: str) -> str:
    """As :func:`text_in`; empty too where there is no such field."""
    return (field_text(fields, field, where) or "").strip() if field in fields else ""


def first_text_in(record: Record, field: str) -> str:
    """As :func:`text_in`, of the first of several where ``field`` holds a list."""
    require_field(field, record.fields, record.name)
    value = record.fields[field]
    if isinstance(value, list):
        value = value[0] if value else None
    return (field_text({field: value}, field, record.name) or "").strip()
