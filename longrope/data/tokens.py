"""The first tokens of a text, without tokenising the whole of a long one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

FIRST_CHARACTERS = 16_384  # enough to see how many characters a token has in this text
# Cutting a text changes how its last characters are tokenised. The change reaches back a few tokens; the tokens
# before this many are those of the whole text.
MARGIN_TOKENS = 64


class TextEncoder:
    """A Hugging Face tokenizer that stops early.

    Texts begin with the special tokens that the tokenizer puts in front of them (BOS, if it adds one). What it
    puts behind a text is never part of it: a sample is cut out of a document that goes on.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.prefix = self._special_tokens_in_front()
        self.eos: int | None = tokenizer.eos_token_id

    def first(self, text: str, length: int) -> Tokens:
        """The first ``length`` tokens of ``text``, special tokens in front included; fewer if the text has fewer.

        Returns:
            (T,) int32 with T <= length, equal to the start of what the tokenizer makes of the whole text.
        """
        wanted = length - len(self.prefix)
        enough = wanted + MARGIN_TOKENS
        characters = FIRST_CHARACTERS
        while True:
            ids = self._encode(text[:characters])
            if characters >= len(text) or len(ids) >= enough:
                return np.array((self.prefix + ids)[:length], dtype=np.int32)
            expected = characters * enough // max(len(ids), 1)
            characters = max(expected + expected // 10, characters + characters // 4)

    def whole(self, text: str) -> Tokens:
        """All tokens of ``text``, without special tokens around it."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or backend.truncation is not None or backend.padding is not None:
            return np.array(self._encode(text), dtype=np.int32)
        # The same tokens in two thirds of the time: this method of the backend notes no offsets into the text.
        return np.array(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids, dtype=np.int32)

    def most_tokens(self, size: int) -> int:
        """The most tokens that a text of ``size`` UTF-8 bytes can have: a byte each.

        One more allows for the space that some tokenizers put in front of a text.
        """
        return len(self.prefix) + size + 1

    def _encode(self, text: str, special: bool = False) -> list[int]:
        # verbose=False: texts longer than the model's window are the point here, not worth a warning.
        ids: list[int] = self._tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
        return ids

    def _special_tokens_in_front(self) -> list[int]:
        bare, framed = self._encode("a"), self._encode("a", special=True)
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return framed[:start]
        return []
