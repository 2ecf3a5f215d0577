"""How settings are read from a recipe: by pydantic, strictly, with lengths as people write them.

Settings are plain dataclasses, so that nobody who builds them in Python needs pydantic; what it has to know of them is
named here, and it is asked only where a recipe is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from longrope.lengths import parse_length, parse_lengths

STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""``__pydantic_config__`` of settings: unknown keys are refused, and text or infinity where a number is wanted."""


class _Read:
    """An annotation that has pydantic read a value by a function first."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._read, handler(source))


def _tokens(value: Any) -> Any:
    return parse_length(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else value


def _lengths(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_tokens(each) for each in value)
    if isinstance(value, str):
        return parse_lengths(value)
    return (_tokens(value),) if isinstance(value, int) and not isinstance(value, bool) else value


Length = Annotated[int, _Read(_tokens)]
"""Tokens; ``128k`` in a recipe."""

OptionalLength = Annotated[int | None, _Read(_tokens)]
"""Tokens or nothing."""

TileLength = Annotated[int, _Read(lambda value: value if value == 0 else _tokens(value))]
"""Tokens; 0 where nothing is chosen."""

Lengths = Annotated[tuple[int, ...], _Read(_lengths)]
"""Several lengths; ``[4k, 8k]`` or ``4k,8k`` in a recipe."""
