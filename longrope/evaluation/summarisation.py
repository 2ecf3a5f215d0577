"""Summaries of documents, compared with written ones by ROUGE.

A document that is too long for the longest text that is allowed is cut at its end, so that the whole prompt fits, and
the item is marked as truncated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from longrope.evaluation.bootstrap import bootstrap_ratio
from longrope.evaluation.generation import generate, longest_that_fits, prompt_tokens
from longrope.evaluation.rouge import VARIANTS, rouge
from longrope.evaluation.suite import Item, Suite
from longrope.evaluation.task_settings import DOCUMENT
from longrope.rope.policy import RopePolicy


@dataclass(frozen=True)
class SummarisedDocument:
    """A document and the summary that somebody wrote of it.

    Attributes:
        name: of its record.
    """

    name: str
    document: str
    summary: str


class SummarisationSuite(Suite):
    """Summarisation of documents.

    The items' length is the longest that is allowed; each has that of its prompt and of the tokens that may follow.

    Args:
        documents: with their summaries.
        max_length: most tokens of a prompt and its summary.
        prompt: holds ``{document}`` once.
        max_new_tokens: most tokens of a summary.
        stemmer: compare words by their stems.
        chat_template: put prompts into the tokenizer's chat template.
    """

    name = "summarisation"

    def __init__(
        self,
        documents: Sequence[SummarisedDocument],
        max_length: int,
        prompt: str,
        max_new_tokens: int,
        stemmer: bool = False,
        chat_template: bool = False,
    ) -> None:
        self._documents, self._prompt, self._stemmer = documents, prompt, stemmer
        self._max_length, self._max_new_tokens, self._chat_template = max_length, max_new_tokens, chat_template
        self.items = [Item(str(number), max_length) for number in range(len(documents))]

    def describe(self) -> dict[str, Any]:
        content = json.dumps([(each.document, each.summary) for each in self._documents])
        return {
            "prompt": self._prompt,
            "max_new_tokens": self._max_new_tokens,
            "stemmer": self._stemmer,
            "chat_template": self._chat_template,
            "documents": len(self._documents),
            "content": hashlib.sha256(content.encode()).hexdigest()[:16],
        }

    def prompt(self, tokenizer: Any, document: str) -> tuple[list[int], int]:
        """Token ids, and how many characters of the document they hold."""

        def tokens(characters: int) -> list[int]:
            text = self._prompt.replace(DOCUMENT, document[:characters].rstrip())
            return prompt_tokens(tokenizer, text, self._chat_template)

        room = self._max_length - self._max_new_tokens
        # A token of prose has about four characters.
        kept = longest_that_fits(len(document), lambda characters: len(tokens(characters)) <= room, 4 * room)
        return tokens(kept), kept

    def measure(self, model: Any, tokenizer: Any, policy: RopePolicy, item: str) -> dict[str, Any]:
        given = self._documents[int(item)]
        prompt, kept = self.prompt(tokenizer, given.document)
        summary = generate(model, tokenizer, policy, prompt, self._max_new_tokens).strip()
        return {
            "length": len(prompt) + self._max_new_tokens,
            "record": given.name,
            "truncated": int(kept < len(given.document)),
            "read": kept / len(given.document),
            "summary": summary,
            **rouge(summary, given.summary, self._stemmer),
        }

    def table(self, records: pd.DataFrame) -> pd.DataFrame:
        """A row a method.

        The means of the F-measures, each with its standard error (bootstrap over documents); ``tokens`` the mean
        length; ``truncated`` how many of the ``documents`` were cut.
        """
        rows = []
        for method, group in records.groupby("method", sort=False):
            row: dict[str, Any] = {"method": method}
            for name in VARIANTS:
                scores = group[name].to_numpy(dtype=float)
                row[name] = float(scores.mean())
                row[f"{name}_error"] = bootstrap_ratio(scores, [1.0] * len(scores)).error
            rows.append(
                {
                    **row,
                    "tokens": round(float(group["length"].mean())),
                    "truncated": int(group["truncated"].sum()),
                    "documents": len(group),
                }
            )
        return pd.DataFrame(rows)
