"""From a mapping of a YAML file to settings: pydantic reads it, and what it refuses is said with file and line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from longrope.data.documents import HUB_NAME
from longrope.data.yaml_file import Section
from longrope.exceptions import DataError, InvalidInputError

T = TypeVar("T")

_FILE = re.compile(r"^[./~]|/$|/.*/|\.(ya?ml|jsonl?|txt|md|parquet)$", re.IGNORECASE)


def read_as(kind: type[T], given: Section, what: str, filled: Mapping[str, Any] | None = None, lacking: str = "") -> T:
    """The settings that a mapping describes.

    Args:
        kind: a dataclass of settings.
        what: how messages call the mapping.
        filled: settings that the mapping must not have, and their values.
        lacking: what to do where one is missing that has no default.

    Raises:
        DataError: for the first mistake, on one line with its place.
    """
    filled = {key: value for key, value in (filled or {}).items() if key in fields_of(kind)}
    for key in given:
        if key in filled:
            raise given.error(key, f"{key!r} is decided by the recipe, not by {what}; leave it away")
    try:
        text = json.dumps({**filled, **given})
    except (TypeError, ValueError) as error:
        raise given.error(
            None, f"{what} holds something that is neither text, number, list nor mapping: {error}"
        ) from None
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise _located(kind, error.errors()[0], given, what, filled, lacking) from None


def fields_of(kind: type[Any]) -> tuple[str, ...]:
    """Names of the settings of a dataclass."""
    return tuple(each.name for each in dataclasses.fields(kind))


def merged(path: Path, line: int, *sections: Section, only: Collection[str] | None = None) -> Section:
    """One mapping of several, the later before the earlier; every key keeps the place that it comes from."""
    both = Section(path, line)
    for section in sections:
        for key, value in section.items():
            if only is None or key in only:
                both[key], both.places[key] = value, section.where(key)
    return both


def split(given: Section, names: Collection[str]) -> tuple[Section, Section]:
    """The keys among ``names``, and the others."""
    rest = [key for key in given if key not in names]
    return merged(given.path, given.line, given, only=names), merged(given.path, given.line, given, only=rest)


def resolve_place(given: Section, key: str) -> None:
    """Make a path under ``key`` absolute: it may be relative to the recipe, or to the folder that we are in.

    Raises:
        DataError: if it looks like a path, and nothing is there.
    """
    value = given.get(key)
    if not isinstance(value, str) or not value:
        return  # of the wrong type: refused with the others
    # What the command line says is not relative to the recipe.
    typed = given.where(key).startswith("override")
    folders = [Path.cwd()] if typed else [given.path.parent, Path.cwd()]
    for folder in folders:
        found = folder / Path(value).expanduser()
        if found.exists():
            given[key] = str(found.resolve())
            return
    if _FILE.search(value) or not (HUB_NAME.fullmatch(value) or "/" not in value):
        raise given.error(key, f"{key} {value!r} does not exist; paths are relative to the recipe or to this folder")


def _located(
    kind: type[Any],
    error: Mapping[str, Any],
    given: Section,
    what: str,
    filled: Mapping[str, Any],
    lacking: str,
) -> DataError:
    """An error of pydantic as one line with its place."""
    location: list[Any] = list(error["loc"])
    outer, last = location[:-1], location[-1] if location else None
    here: Any = given
    holder, key = given, None
    for part in location:
        if isinstance(part, str) and isinstance(here, Section) and part in here:
            holder, key, here = here, part, here[part]
        elif isinstance(part, int) and isinstance(here, list) and part < len(here):
            here = here[part]
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, InvalidInputError):
        if isinstance(here, Section):  # about several keys of it; the first that the message names is the place
            named = next((each for each in here if _names(str(reason), each)), None)
            return here.error(named, reason) if named is not None else holder.error(key, reason)
        if isinstance(last, str) and not _names(str(reason), last):
            return holder.error(key, f"{last}: {reason}")
        return holder.error(key, reason)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [name for name in _known(kind, outer) if name not in filled]
        close = difflib.get_close_matches(str(last), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        inner = ".".join(map(str, outer))
        return holder.error(key, f"{last!r} is no key of {inner or what}; {hint}")
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return holder.error(key, f"{what} needs {name}" + (f"; {lacking}" if lacking else ""))
    value = json.dumps(here if here is not given else error.get("input"), default=str)
    return holder.error(key, f"{name} is {value}; {str(error['msg']).replace('Input should', 'it should')}")


def _names(message: str, key: str) -> bool:
    spellings = {key, key.replace("_", "-"), key.replace("_", " ")}
    return any(re.search(rf"(?<![\w-]){re.escape(each)}(?![\w-])", message) for each in spellings)


def _known(kind: Any, inner: list[Any]) -> tuple[str, ...]:
    """The settings of the dataclass that a path of keys leads to."""
    for part in inner:
        hint = get_type_hints(kind).get(part)
        kind = next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), None)
        if kind is None:
            return ()
    return fields_of(kind)
