"""From a mapping of a YAML file to settings: pydantic reads it, and what it refuses is said with file and line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

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
    _refuse_foreign(given)
    try:
        settings: T = _adapter(cast(Hashable, kind)).validate_json(json.dumps({**filled, **given}))
    except ValidationError as error:
        raise _located(kind, error.errors(), given, what, filled, lacking) from None
    return settings


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


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


def about_keys(given: Section, error: InvalidInputError, otherwise: str | None = None) -> DataError:
    """An error about keys of a mapping, with the place of the first that it names.

    Args:
        otherwise: the place where it names none; that of the mapping when not given.
    """
    found = [(at, place) for key, place in _places(given) if (at := _named(str(error), key)) is not None]
    return DataError(f"{min(found)[1] if found else otherwise or given.where()}: {error}")


def _places(given: Section) -> Iterator[tuple[str, str]]:
    """Every key of a mapping and of those in it, and its place."""
    for key, value in given.items():
        yield key, given.where(key)
        if isinstance(value, Section):
            yield from _places(value)


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
    if not isinstance(value, str):
        return  # of the wrong type: refused with the others
    if not value:
        raise given.error(key, f"{key} is empty; give a path or the id of a repository on the hub")
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


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_KINDS = {
    "a valid array": "a list",
    "a valid boolean": "true or false",
    "a valid dictionary": "a mapping",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
}
"""What YAML calls kinds of values, by pydantic's name for them."""
_OPTIONS = {"learning_rate": "lr"}
"""Options of the command line that are not called as the settings are."""
_COUNTS = {"missing": "too few", "too_short": "too few", "too_long": "too many"}


@dataclasses.dataclass(frozen=True)
class _Place:
    """What an error of pydantic is about.

    Attributes:
        holder: the innermost mapping on the way there.
        key: of that mapping; None where the mapping itself is meant.
        value: what stands there.
        keys: the way there, as far as it goes in the recipe.
    """

    holder: Section
    key: str | None
    value: Any
    keys: tuple[str | int, ...]

    @classmethod
    def of(cls, location: Sequence[str | int], given: Section) -> _Place:
        holder, key, here = given, None, given
        keys: tuple[str | int, ...] = ()
        for part in location:
            if isinstance(part, str) and isinstance(here, Section) and part in here:
                holder, key, here = here, part, here[part]
            elif isinstance(part, int) and isinstance(here, list) and part < len(here):
                here = here[part]
            else:
                break
            keys = (*keys, part)
        return cls(holder, key, here, keys)

    @property
    def name(self) -> str:
        """The way there as people write it: ``algorithm.n_hat[0]``."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.keys).lstrip(".")


def _located(
    kind: type[Any],
    errors: Sequence[Mapping[str, Any]],
    given: Section,
    what: str,
    filled: Mapping[str, Any],
    lacking: str,
) -> DataError:
    """The errors of pydantic as one line with its place, about the one that explains the others."""
    # A misspelt key first: that its right spelling is missing follows from it.
    error = min(errors, key=lambda each: (each["type"] == "missing", each["type"] not in _UNKNOWN))
    place = _Place.of(error["loc"], given)
    outer, last = tuple(error["loc"])[:-1], error["loc"][-1] if error["loc"] else None
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, InvalidInputError):
        if isinstance(place.value, Section):  # about several keys of it
            return about_keys(place.value, reason, place.holder.where(place.key))
        if isinstance(last, str) and _named(str(reason), last) is None:
            return place.holder.error(place.key, f"{last}: {reason}")
        return place.holder.error(place.key, reason)
    if error["type"] in _UNKNOWN:
        known = [name for name in _known(kind, outer) if name not in filled]
        inner = ".".join(map(str, outer))
        return place.holder.error(place.key, f"{last!r} is no key of {inner or what}; {_hint(str(last), known)}")
    if error["type"] == "missing" and isinstance(last, str):
        name = ".".join(map(str, error["loc"]))
        return place.holder.error(place.key, f"{what} needs {name}" + (f"; {lacking}" if lacking else ""))
    value = json.dumps(place.value, default=str)
    if error["type"] in _COUNTS:
        return place.holder.error(place.key, f"{place.name} is {value}, which has {_COUNTS[error['type']]} values")
    # One error for each kind that the value could have had.
    others = [str(each["msg"]) for each in errors if _Place.of(each["loc"], given).keys == place.keys]
    wanted = " or ".join(dict.fromkeys(message.rpartition(" should be ")[2] for message in others))
    for theirs, ours in _KINDS.items():
        wanted = wanted.replace(theirs, ours)
    return place.holder.error(place.key, f"{place.name} is {value}; it should be {wanted}")


def _hint(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _refuse_foreign(given: Section) -> None:
    """Raise DataError for the first value that YAML has and JSON has not, such as a date."""
    for key, value in given.items():
        for each in _values(value):
            if isinstance(each, Section):
                _refuse_foreign(each)
            elif not isinstance(each, str | int | float | None):
                raise given.error(
                    key, f"{key} holds {each!s}, a {type(each).__name__}; put it into quotes, if it is meant as text"
                )


def _values(value: Any) -> Iterator[Any]:
    """The value, or those in a list, however deep."""
    if isinstance(value, list):
        for each in value:
            yield from _values(each)
    else:
        yield value


def _named(message: str, key: str) -> int | None:
    """Where a message names a key, in any of its spellings."""
    options = (key, key.replace("_", "-"), key.replace("_", " "), key.removesuffix("s"), _OPTIONS.get(key, key))
    spellings = "|".join(map(re.escape, options))
    found = re.search(rf"(?<![\w-])({spellings})(?![\w-])", message)
    return None if found is None else found.start()


def _known(kind: Any, inner: Sequence[Any]) -> tuple[str, ...]:
    """The settings of the dataclass that a path of keys leads to."""
    for part in inner:
        hint = get_type_hints(kind).get(part)
        kind = next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), None)
        if kind is None:
            return ()
    return fields_of(kind)
