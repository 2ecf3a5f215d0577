"""Data sets that are published as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from longrope.data.documents import require_field
from longrope.data.records import Record
from longrope.data.templates.template import Piece, Surroundings, Template
from longrope.exceptions import DataError, SettingsError


@dataclass(frozen=True, kw_only=True)
class Tokenized(Template):
    """Token ids as they are: right only for the tokenizer that made them.

    Attributes:
        field: holds the list of ids.
        vocab_size: entries of the tokenizer that made them; another size is refused.
    """

    name: ClassVar[str] = "tokenized"
    whole: ClassVar[bool] = False

    field: str = "input_ids"
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise SettingsError("template 'tokenized' needs vocab_size: the size of the tokenizer that made the ids")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.field,)

    def pieces(self, record: Record, surroundings: Surroundings) -> tuple[Piece, ...]:
        require_field(self.field, record.fields, record.name)
        value = record.fields[self.field]
        ids: npt.NDArray[np.int64] | None
        try:
            ids = np.array([] if value is None else value, dtype=np.int64)
        except (ValueError, TypeError, OverflowError):
            ids = None
        if ids is None or ids.ndim != 1:
            raise DataError(f"field {self.field!r} in {record.name} is not a list of token ids")
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise DataError(f"field {self.field!r} in {record.name} has ids outside 0..{self.vocab_size - 1}")
        return (Piece(ids.astype(np.int32)),) if len(ids) else ()
