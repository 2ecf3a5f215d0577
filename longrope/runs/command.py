"""The options of a command line from the settings that it was turned into."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from longrope.lengths import format_length


def options_of(settings: Any, names: Mapping[str, str] | None = None, leave: Collection[str] = ()) -> list[str]:
    """Options for every field of a settings dataclass that differs from its default.

    Args:
        names: options that are not called as their field.
        leave: fields that are no options, or are not wanted; fields that hold settings themselves never are.

    Returns:
        Arguments in the order of the fields, such as ``["--lengths", "4k,8k", "--concatenate"]``. Tokens are written
        as people write them, where the field's name says that it holds tokens.
    """
    given = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in leave or is_dataclass(value) or value is None or value == _default(field):
            continue
        name = (names or {}).get(field.name, field.name.replace("_", "-"))
        given += option(name, value, tokens="length" in field.name or field.name == "windows")
    return given


def option(name: str, value: Any, tokens: bool = False) -> list[str]:
    """One option with its value; a truth is a flag."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, (tuple, list)):
        return [f"--{name}", ",".join(_text(each, tokens) for each in value)]
    return [f"--{name}", _text(value, tokens)]


def _text(value: Any, tokens: bool) -> str:
    return format_length(value) if tokens and isinstance(value, int) else str(value)


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default
