"""Few-shot packing: examples of tasks one after the other, as many as there is room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longrope.data.records import Record
from longrope.data.templates.template import AnswerTemplate, Piece, Surroundings, optional_text_in, text_in


@dataclass(frozen=True, kw_only=True)
class FewShot(AnswerTemplate):
    """Records of instruction, input and output in one document until it is full, the loss on the outputs.

    That is how Together's LLaMA-2-7B-32K was taught to use examples in its context
    (https://www.together.ai/blog/llama-2-7b-32k).

    Attributes:
        instruction: field of what is to be done; may be missing.
        input: field of what it is to be done with; may be missing.
        output: field of the result.
        length: tokens of a full document; what a segment holds when 0.
    """

    name: ClassVar[str] = "few-shot"
    packs: ClassVar[bool] = True

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    length: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        return self.instruction, self.input, self.output

    def pieces(self, record: Record, surroundings: Surroundings) -> tuple[Piece, ...]:
        instruction = optional_text_in(record.fields, self.instruction, record.name)
        given = optional_text_in(record.fields, self.input, record.name)
        output = text_in(record, self.output)
        if not output or not (instruction or given):
            return ()
        task = "\n\n".join(([instruction] if instruction else []) + ([f"Input: {given}"] if given else []))
        # The blank line ends the output: with it counted, a model learns to stop there.
        return self.pair(f"{task}\nOutput:", f" {output}\n\n")
