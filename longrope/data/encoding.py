"""Documents into tokens, with a mark on those where the loss counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.data.templates.template import Piece
from longrope.data.tokens import TextEncoder, Tokens
from longrope.exceptions import SettingsError


@dataclass(frozen=True, eq=False)
class Encoded:
    """The tokens of a document, without bookends.

    Attributes:
        tokens: (T,) int32.
        counts: (T,) bool, where the loss counts.
    """

    tokens: Tokens
    counts: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


class PieceEncoder:
    """Turns the pieces of a document into tokens.

    The pieces are joined first, as a model in use reads them. A token that reaches from a prompt into its answer
    belongs to the answer: it has to be predicted for the answer to be written.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._text = TextEncoder(tokenizer)

    def encode(self, pieces: Sequence[Piece]) -> Encoded:
        """The tokens of ``pieces``, one after the other.

        Raises:
            SettingsError: if parts do not count and the tokenizer cannot tell where its tokens lie in the text.
        """
        texts: list[tuple[str, bool]] = []
        for piece in pieces:
            if not isinstance(piece.content, str):
                assert len(pieces) == 1  # ready tokens are never joined with text
                return Encoded(piece.content, np.full(len(piece.content), piece.counts))
            texts.append((piece.content, piece.counts))
        text = "".join(content for content, _ in texts)
        if all(counts for _, counts in texts):
            tokens = self._text.whole(text)
            return Encoded(tokens, np.ones(len(tokens), dtype=np.bool_))
        if not self._tokenizer.is_fast:
            raise SettingsError(
                "this model's tokenizer does not tell where its tokens lie in the text, which masking prompts needs; "
                "use a fast tokenizer, or give the template loss: all"
            )
        found = self._tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
        )
        # (T, 2) where each token begins and ends; its last character decides which piece it belongs to
        spans = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        last = np.maximum(spans[:, 1] - 1, spans[:, 0])
        ends = np.cumsum([len(content) for content, _ in texts])
        which = np.minimum(np.searchsorted(ends, last, side="right"), len(texts) - 1)
        return Encoded(np.array(found["input_ids"], np.int32), np.array([counts for _, counts in texts])[which])

    def text(self, pieces: Sequence[Piece]) -> str:
        """The text of ``pieces``, ready tokens decoded."""
        return "".join(
            piece.content
            if isinstance(piece.content, str)
            else str(self._tokenizer.decode(piece.content.tolist(), skip_special_tokens=True))
            for piece in pieces
        )
