"""Passes of a segment under the window that it is meant for, chosen before the pass and held through it.

Rows of a short window lie on one process each, so they need neither what exchanges heads for positions among the
processes of a sequence nor attention in groups: they are computed by the attention that the model was loaded with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from longrope.model.attach import Attachment


class WindowPasses:
    """How a model passes segments of several windows.

    Args:
        model: a transformers causal language model, before anything else changes its attention.
        attachment: the policy on it.
        length: tokens of a segment; windows that hold it have whole segments.
    """

    def __init__(self, model: Any, attachment: Attachment, length: int) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._interface = ALL_ATTENTION_FUNCTIONS
        self._kernel = str(model.config._attn_implementation)
        self._loaded = self._interface[self._kernel]
        self._attachment, self._length = attachment, length
        attachment.pin(length)

    @contextmanager
    def of(self, window: int) -> Iterator[None]:
        """A forward and backward pass of rows whose full length is that of ``window``, inside a ``with`` block."""
        self._attachment.pin(window)
        if window >= self._length:
            yield
            return
        present = self._interface[self._kernel]
        self._interface[self._kernel] = self._loaded
        try:
            yield
        finally:
            self._interface[self._kernel] = present
