"""Instruction pairs: a prompt and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longrope.data.records import Record
from longrope.data.templates.template import AnswerTemplate, Piece, Surroundings, text_in


@dataclass(frozen=True, kw_only=True)
class Instruction(AnswerTemplate):
    r"""``prompt`` + ``between`` + ``answer``, the loss on the answer.

    Attributes:
        prompt: field of the prompt.
        answer: field of the answer.
        between: text between the two.
    """

    name: ClassVar[str] = "instruction"

    prompt: str = "prompt"
    answer: str = "answer"
    between: str = "\n"

    @property
    def columns(self) -> tuple[str, ...]:
        return self.prompt, self.answer

    def pieces(self, record: Record, surroundings: Surroundings) -> tuple[Piece, ...]:
        prompt, answer = text_in(record, self.prompt), text_in(record, self.answer)
        return self.pair(prompt + self.between, answer) if prompt and answer else ()
