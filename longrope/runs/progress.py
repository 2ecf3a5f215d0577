"""Progress: how a run tells of itself. The base class says nothing; the command line has one that draws."""

from __future__ import annotations

import logging

logger = logging.getLogger("longrope")


class Progress:
    """Receives what happens in a run; to be overridden."""

    def note(self, message: str) -> None:
        """Something worth a line: what is about to happen, a worker replaced."""
        logger.info(message)

    def begin(self, description: str, total: int | None) -> None:
        """A phase of ``total`` evaluations starts (None: not known)."""

    def advance(self) -> None:
        """One evaluation is done."""

    def describe(self, status: str) -> None:
        """Where the phase stands, in a few words."""

    def end(self) -> None:
        """The phase is over."""
