"""Multi-document question answering: one document holds the answer, the others distract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from longrope.data.documents import require_field
from longrope.data.order import shuffled
from longrope.data.records import Record
from longrope.data.templates.template import (
    AnswerTemplate,
    Piece,
    Surroundings,
    first_text_in,
    optional_text_in,
    text_in,
)
from longrope.exceptions import DataError, SettingsError

TASK = "Answer the question with the documents below. Only some of them bear on it.\n\n"  # said before the documents


def qa_prompt(documents: Sequence[str], question: str) -> str:
    """What is read before the answer: ``documents`` as :func:`shown_document` gives them, numbered, then ``question``.

    An answer follows it with a blank in front. Evaluation asks in the same words.
    """
    shown = "\n".join(f"Document [{number}] {text}" for number, text in enumerate(documents, start=1))
    return f"{TASK}{shown}\n\nQuestion: {question}\nAnswer:"


def shown_document(document: Any, where: str, title: str = "title", text: str = "text") -> str | None:
    """``(Title: ...) text`` of an object with these keys, or a text as it is; None if there is no text.

    Raises:
        DataError: if ``document``, which ``where`` names, is something else.
    """
    if document is None:
        return None
    if isinstance(document, str):
        return document.strip() or None
    if not isinstance(document, Mapping):
        raise DataError(f"{where} is no document; give a text, or an object with {title!r} and {text!r}")
    require_field(text, document, where)
    heading, body = optional_text_in(document, title, where), optional_text_in(document, text, where)
    if not body:
        return None
    return f"(Title: {heading}) {body}" if heading else body


@dataclass(frozen=True, kw_only=True)
class MultiDocumentQA(AnswerTemplate):
    """``Document [k] (Title: ...) text`` for each document, then the question and its answer.

    The form is that of Liu et al., "Lost in the Middle" (arXiv 2307.03172, section 2.1). Which place the document
    with the answer has, and how many documents there are, is drawn by seed anew in every epoch.

    Attributes:
        question: field of the question.
        answer: field of the answer; of a list, the first is taken.
        document: field of the document that holds the answer: an object with a title and a text, or a text.
        distractors: field of a list of such documents that do not; may be missing. Where there are too few, the
            documents of other records make up the number.
        title: key of a document's title; may be missing.
        text: key of a document's text.
        min_documents: fewest documents, the one with the answer included.
        max_documents: most documents.
    """

    name: ClassVar[str] = "multi-document-qa"

    question: str = "question"
    answer: str = "answer"
    document: str = "document"
    distractors: str = "distractors"
    title: str = "title"
    text: str = "text"
    min_documents: int = 20
    max_documents: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.min_documents <= self.max_documents:
            raise SettingsError(
                f"min_documents {self.min_documents} and max_documents {self.max_documents} of template {self.name!r} "
                "must be at least 1 and in this order"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return self.question, self.answer, self.document, self.distractors

    def pieces(self, record: Record, surroundings: Surroundings) -> tuple[Piece, ...]:
        question, answer = text_in(record, self.question), first_text_in(record, self.answer)
        gold = self._document(record, self.document)
        if not question or not answer or gold is None:
            return ()
        key = surroundings.key
        count = self.min_documents
        count += int(shuffled(self.max_documents - self.min_documents + 1, *key, "documents")[0])
        documents: list[str] = []
        for other in self._distracting(record, surroundings):
            if len(documents) == count - 1:
                break
            if other != gold and other not in documents:
                documents.append(other)
        place = int(shuffled(len(documents) + 1, *key, "place")[0])
        documents.insert(place, gold)
        return self.pair(qa_prompt(documents, question), f" {answer}")

    def _distracting(self, record: Record, surroundings: Surroundings) -> Iterator[str]:
        own = record.fields.get(self.distractors) or []
        if not isinstance(own, list):
            raise DataError(f"field {self.distractors!r} in {record.name} is not a list of documents")
        for index in shuffled(len(own), *surroundings.key, "distractors"):
            document = self._shown(own[int(index)], f"{self.distractors!r} in {record.name}")
            if document is not None:
                yield document
        for other in surroundings.others():
            document = self._document(other, self.document)
            if document is not None:
                yield document

    def _document(self, record: Record, field: str) -> str | None:
        require_field(field, record.fields, record.name)
        return self._shown(record.fields[field], f"{field!r} in {record.name}")

    def _shown(self, document: Any, where: str) -> str | None:
        return shown_document(document, where, self.title, self.text)
