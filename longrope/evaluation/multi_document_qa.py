"""Questions whose answer stands in one of many documents, after Liu et al., "Lost in the Middle" (arXiv 2307.03172).

Every question is asked with several numbers of documents, and with the one that holds the answer at several places.
Where the documents are too many for the longest text that is allowed, fewer are shown, that one at the same place
among them, and the item is marked as truncated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from longrope.data.templates.multi_document_qa import qa_prompt
from longrope.evaluation.answers import best_subspan_em, exact_match, first_line, has_first_line
from longrope.evaluation.generation import generate, longest_that_fits, prompt_tokens
from longrope.evaluation.questions import Question, gold_index
from longrope.evaluation.retrieval import wilson
from longrope.evaluation.suite import Item, Suite, by_key
from longrope.rope.policy import RopePolicy


class MultiDocumentQASuite(Suite):
    """Multi-document question answering.

    The items' length is the longest that is allowed; each has that of its prompt and of the tokens that may follow.

    Args:
        questions: with at least as many distractors as the largest number of documents needs.
        max_length: most tokens of a prompt and its answer.
        documents: numbers of documents.
        positions: of the document that holds the answer: 0 for first, 1 for last.
        max_new_tokens: most tokens of an answer.
        chat_template: put prompts into the tokenizer's chat template.
    """

    name = "multi-document-qa"

    def __init__(
        self,
        questions: Sequence[Question],
        max_length: int,
        documents: Sequence[int],
        positions: Sequence[float],
        max_new_tokens: int,
        chat_template: bool = False,
    ) -> None:
        self._questions = questions
        self._documents, self._positions = list(documents), list(positions)
        self._max_length, self._max_new_tokens, self._chat_template = max_length, max_new_tokens, chat_template
        self._asked: dict[str, tuple[Question, int, float]] = {}
        for count in documents:
            # Two positions may be one place among few documents; the first of them is measured.
            distinct = {gold_index(count, position): position for position in reversed(positions)}
            for position in sorted(distinct.values()):
                for number, question in enumerate(questions):
                    self._asked[f"{count}/{position!r}/{number}"] = question, count, position
        self.items = [Item(key, max_length) for key in self._asked]
        by_key(self.items)

    def describe(self) -> dict[str, Any]:
        # Without the names: the records may lie in another folder tomorrow.
        content = json.dumps([asdict(replace(question, name="")) for question in self._questions])
        return {
            "documents": self._documents,
            "positions": self._positions,
            "max_new_tokens": self._max_new_tokens,
            "chat_template": self._chat_template,
            "questions": len(self._questions),
            "content": hashlib.sha256(content.encode()).hexdigest()[:16],
        }

    def prompt(self, tokenizer: Any, item: str) -> tuple[list[int], list[str], int]:
        """Token ids, the documents that are shown, and the index of the one that holds the answer among them."""
        question, count, position = self._asked[item]

        def tokens(shown: int) -> list[int]:
            text = qa_prompt(question.ordered(shown, position)[0], question.question)
            return prompt_tokens(tokenizer, text, self._chat_template)

        room = self._max_length - self._max_new_tokens
        shown = max(longest_that_fits(count, lambda number: len(tokens(number)) <= room, count), 1)
        return tokens(shown), *question.ordered(shown, position)

    def least_tokens(self, tokenizer: Any) -> tuple[int, str]:
        """The fewest tokens in which every question can be asked and answered, and the record that needs them."""
        return max(
            (len(prompt_tokens(tokenizer, qa_prompt([each.gold], each.question), self._chat_template)), each.name)
            for each in self._questions
        )

    def measure(self, model: Any, tokenizer: Any, policy: RopePolicy, item: str) -> dict[str, Any]:
        question, count, position = self._asked[item]
        prompt, documents, gold = self.prompt(tokenizer, item)
        written = generate(model, tokenizer, policy, prompt, self._max_new_tokens, stop=has_first_line)
        line = first_line(written)
        return {
            "length": len(prompt) + self._max_new_tokens,
            "record": question.name,
            "documents": count,
            "position": position,
            "shown": len(documents),
            "gold": gold + 1,
            "truncated": int(len(documents) < count),
            "question": question.question,
            "answers": json.dumps(question.answers, ensure_ascii=False),
            "answer": line,
            "best_subspan_em": int(best_subspan_em(line, question.answers)),
            "exact_match": int(exact_match(line, question.answers)),
        }

    def table(self, records: pd.DataFrame) -> pd.DataFrame:
        """A row a method, number of documents and position.

        ``best_subspan_em`` is the share of answers whose first line holds a right one, ``low`` and ``high`` its 95%
        interval; ``exact_match`` the share whose first line is one; ``tokens`` the mean length; ``truncated`` how many
        of the ``trials`` had fewer documents.
        """
        rows = []
        for (method, documents, position), group in records.groupby(["method", "documents", "position"], sort=False):
            low, high = wilson(int(group["best_subspan_em"].sum()), len(group))
            rows.append(
                {
                    "method": method,
                    "documents": documents,
                    "position": position,
                    "best_subspan_em": float(group["best_subspan_em"].mean()),
                    "low": low,
                    "high": high,
                    "exact_match": float(group["exact_match"].mean()),
                    "tokens": round(float(group["length"].mean())),
                    "truncated": int(group["truncated"].sum()),
                    "trials": len(group),
                }
            )
        return pd.DataFrame(rows)
