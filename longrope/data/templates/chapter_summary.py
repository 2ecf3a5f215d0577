"""Chapter summarisation, as in BookSum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longrope.data.records import Record
from longrope.data.templates.template import AnswerTemplate, Piece, Surroundings, text_in

PROMPT = "Summarize this chapter.\n\n{document}\n\nSummary:"  # evaluation asks in the same words


@dataclass(frozen=True, kw_only=True)
class ChapterSummary(AnswerTemplate):
    """The text of a chapter, then its summary, the loss on the summary.

    Attributes:
        chapter: field of the chapter's text.
        summary: field of the summary.
    """

    name: ClassVar[str] = "chapter-summary"

    chapter: str = "chapter"
    summary: str = "summary"

    @property
    def columns(self) -> tuple[str, ...]:
        return self.chapter, self.summary

    def pieces(self, record: Record, surroundings: Surroundings) -> tuple[Piece, ...]:
        chapter, summary = text_in(record, self.chapter), text_in(record, self.summary)
        if not chapter or not summary:
            return ()
        return self.pair(PROMPT.replace("{document}", chapter), f" {summary}")
