"""Questions, the document that answers each, and documents that do not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from longrope.data.documents import field_text, require_field
from longrope.data.order import shuffled
from longrope.data.records import Record
from longrope.data.templates.multi_document_qa import shown_document
from longrope.data.templates.template import text_in
from longrope.evaluation.answers import mentions, normalise
from longrope.evaluation.task_settings import MultiDocumentQASettings
from longrope.exceptions import DataError

_GOLD_MARKS = ("isgold", "hasanswer")
"""What marks the document with the answer, the surest first."""


@dataclass(frozen=True)
class Question:
    """A question about documents, which are texts as a prompt shows them.

    Attributes:
        name: of its record.
        answers: any of which is right; each has words left when normalised.
        gold: the document that holds the answer.
        distractors: documents beside it, in the order in which they are used.
    """

    name: str
    question: str
    answers: tuple[str, ...]
    gold: str
    distractors: tuple[str, ...]

    def with_distractors(self, pool: Sequence[str], count: int, seed: int) -> Question:
        """The same question with ``count`` distractors: its own in their order, then some of ``pool`` at random.

        All differ, and none holds an answer in whole words.

        Raises:
            DataError: if there are too few that hold no answer.
        """
        drawn = (pool[index] for index in shuffled(len(pool), seed, self.question, self.gold).tolist())
        chosen: dict[str, None] = {}
        for text in chain(self.distractors, drawn):
            if len(chosen) == count:
                break
            if text != self.gold and text not in chosen and not mentions(text, self.answers):
                chosen[text] = None
        if len(chosen) < count:
            raise DataError(
                f"{self.name} has {len(chosen)} documents without an answer, with those of other records, and "
                f"{count + 1} documents need {count}; give more records, or fewer documents"
            )
        return replace(self, distractors=tuple(chosen))

    def ordered(self, count: int, position: float) -> tuple[list[str], int]:
        """``count`` documents in the order in which they are shown, and the index of the one with the answer.

        More documents are the same ones and others.
        """
        documents = list(self.distractors[: count - 1])
        assert len(documents) == count - 1
        index = gold_index(count, position)
        documents.insert(index, self.gold)
        return documents, index


def gold_index(count: int, position: float) -> int:
    """The index of the document with the answer among ``count``, at a position from 0 (first) to 1 (last).

    Between two indices it is the earlier one, as in the experiments of Liu et al.: of 20 documents, the positions 0,
    0.25, 0.5, 0.75 and 1 are the indices 0, 4, 9, 14 and 19.
    """
    return int(position * (count - 1) + 1e-9)


def read_question(record: Record, settings: MultiDocumentQASettings) -> Question | None:
    """The question of a record in one of two forms; None if it asks nothing, or no answer has a word in it.

    With ``contexts``, as the files of "Lost in the Middle" have it: a list of objects with ``title``, ``text`` and
    ``isgold`` or ``hasanswer``. Without: the object or text in ``document``, and a list of such in ``distractors``.

    Raises:
        DataError: if a field is missing or not of its kind, or no document holds the answer.
    """
    question, answers = text_in(record, settings.question), _answers(record, settings.answers)
    if settings.contexts in record.fields:
        gold, others = _split(record, settings.contexts)
    else:
        if settings.document not in record.fields:
            present = ", ".join(map(repr, record.fields)) or "none"
            raise DataError(
                f"there is neither a field {settings.contexts!r} nor {settings.document!r} in {record.name}; its "
                f"fields are {present}"
            )
        gold, others = record.fields[settings.document], _list(record, settings.distractors)
    shown = shown_document(gold, f"{settings.document!r} in {record.name}")
    if shown is None:
        raise DataError(f"the document that holds the answer is empty in {record.name}; fill it in, or leave it out")
    if not question or not answers:
        return None
    texts = (shown_document(other, f"a distractor in {record.name}") for other in others)
    return Question(record.name, question, answers, shown, tuple(text for text in texts if text is not None))


def document_pool(questions: Iterable[Question]) -> list[str]:
    """Every document of ``questions`` once."""
    return list(dict.fromkeys(text for each in questions for text in (each.gold, *each.distractors)))


def _answers(record: Record, field: str) -> tuple[str, ...]:
    require_field(field, record.fields, record.name)
    value = record.fields[field]
    texts = [field_text({field: each}, field, record.name) for each in (value if isinstance(value, list) else [value])]
    return tuple(text for text in texts if text is not None and normalise(text))


def _split(record: Record, field: str) -> tuple[Any, list[Any]]:
    """The document that holds the answer, and those that do not."""
    contexts = _list(record, field)
    for each in contexts:
        if not isinstance(each, Mapping):
            raise DataError(f"{field!r} in {record.name} holds {json.dumps(each)[:40]}; give objects with a text")
    for mark in _GOLD_MARKS:
        marked = [each for each in contexts if each.get(mark) is True]
        if marked:
            return marked[0], [each for each in contexts if not any(each.get(name) is True for name in _GOLD_MARKS)]
    raise DataError(
        f"none of the {len(contexts)} documents in {field!r} of {record.name} is marked as the one with the answer; "
        f"set {' or '.join(_GOLD_MARKS)} to true there"
    )


def _list(record: Record, field: str) -> list[Any]:
    found = record.fields.get(field)
    if found is None:
        return []
    if not isinstance(found, list):
        raise DataError(f"field {field!r} in {record.name} is not a list of documents but {type(found).__name__}")
    return found
