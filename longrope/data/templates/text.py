"""Plain text: what pretraining sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longrope.data.documents import field_text
from longrope.data.records import Record
from longrope.data.templates.template import Piece, Surroundings, Template


@dataclass(frozen=True, kw_only=True)
class Text(Template):
    """A field as it is; long documents go on in the next segment.

    Attributes:
        field: holds the text. A text file is one record with this field.
    """

    name: ClassVar[str] = "text"
    whole: ClassVar[bool] = False

    field: str = "text"

    @property
    def text_field(self) -> str:
        return self.field

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.field,)

    def pieces(self, record: Record, surroundings: Surroundings) -> tuple[Piece, ...]:
        text = field_text(record.fields, self.field, record.name)
        return () if text is None else (Piece(text),)
