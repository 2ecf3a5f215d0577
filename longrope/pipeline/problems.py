"""What is found wrong with a run before it starts, each with its place in the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from longrope.exceptions import InvalidInputError
from longrope.pipeline.stages import Stage


class Problems(list[str]):
    """A line for each problem: the stage, what it needs, what is there and what to do."""

    def note(self, place: Stage | str, problem: str) -> None:
        """Add a problem."""
        self.append(told(place, problem))

    @contextmanager
    def noting(self, place: Stage | str) -> Iterator[None]:
        """A check; if it finds a problem, that is added, and what follows the block goes on."""
        try:
            yield
        except InvalidInputError as error:
            self.note(place, str(error))


def told(place: Stage | str, problem: str) -> str:
    """A problem with where it is."""
    return f"{place if isinstance(place, str) else f'{place.where}: {place.name}'}: {problem}"
