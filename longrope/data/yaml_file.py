"""YAML files whose mistakes are named with their line.

Values are read by the safe loader: plain data only. A key that stands twice is refused, and so is one that nobody
reads, so that a misspelt option never silently keeps its default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from longrope.data.documents import decode_text, in_one_line
from longrope.exceptions import DataError, InvalidInputError

_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
"""Numbers such as 2e-5, which YAML 1.1 takes for text because they have no point."""


class Section(dict[str, Any]):
    """A mapping of a YAML file that knows where it stands.

    Attributes:
        path: the file.
        line: the line that the mapping begins in.
        lines: the line of each key.
        places: of keys that were set from elsewhere than the file, as errors name them.
    """

    def __init__(self, path: Path, line: int) -> None:
        super().__init__()
        self.path, self.line = path, line
        self.lines: dict[str, int] = {}
        self.places: dict[str, str] = {}

    def where(self, key: str | None = None) -> str:
        """The place of ``key``, or of the mapping, as an error names it."""
        if key is not None and key in self.places:
            return self.places[key]
        return f"{str(self.path)!r} line {self.lines.get(key, self.line) if key is not None else self.line}"

    def refuse_unknown(self, known: Iterable[str], what: str) -> None:
        """Raise a DataError for the first key that is not one of ``known``."""
        known = list(known)
        for key in self:
            if key not in known:
                raise DataError(f"{self.where(key)}: {key!r} is no key of {what}; known are {', '.join(known)}")

    def error(self, key: str | None, error: InvalidInputError | str) -> DataError:
        """An error about ``key`` that names its place."""
        return DataError(f"{self.where(key)}: {error}")


def read_yaml(path: Path) -> Section:
    """The mapping that the YAML file at ``path`` holds; mappings below are sections too.

    Raises:
        DataError: if the file cannot be read, is not YAML, is not a mapping, or gives a key twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {in_one_line(error)}") from error

    text = decode_text(data, f"{str(path)!r} line {_end_of_text(data)}")
    try:
        content = yaml.load(text, _loader(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
        line = ""
        if mark is not None or position is not None:
            line = f" line {1 + (mark.line if mark is not None else text.count(chr(10), 0, position))}"
        problem = getattr(error, "problem", None) or in_one_line(error)
        raise DataError(f"{str(path)!r}{line} is not valid YAML: {problem}") from error
    if content is None:
        raise DataError(f"{str(path)!r} line 1: the file is empty")
    if not isinstance(content, Section):
        raise DataError(f"{str(path)!r} line 1: the file holds no mapping of keys to values")
    return content


def read_yaml_value(text: str, place: str) -> Any:
    """The value that a piece of YAML holds, such as ``[4k, 8k]``.

    Args:
        place: where it was given, for messages.

    Raises:
        DataError: if it is not YAML.
    """
    try:
        return yaml.load(text, _loader(Path(place)))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise DataError(f"{place}: the value is not valid YAML") from error


def _end_of_text(data: bytes) -> int:
    """The line in which UTF-8 text ends, or something begins that is none."""
    end = data.find(b"\0")
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        end = error.start if end < 0 else min(end, error.start)
    return 1 + data.count(b"\n", 0, end if end >= 0 else None)


def _loader(path: Path) -> type[Any]:
    """The safe loader, whose mappings are sections of ``path``."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_section(self, node: yaml.MappingNode) -> Section:
            section = Section(path, node.start_mark.line + 1)
            for key_node, value_node in node.value:
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if not isinstance(key, str):
                    raise DataError(f"{str(path)!r} line {line}: the key {key!r} is not text")
                if key in section:
                    raise DataError(
                        f"{str(path)!r} line {line}: {key!r} is given twice; the first is in line {section.lines[key]}"
                    )
                section.lines[key] = line
                try:
                    section[key] = self.construct_object(value_node, deep=True)
                except ValueError as error:  # a date that there is not
                    if isinstance(error, InvalidInputError):
                        raise
                    raise DataError(f"{section.where(key)}: {key} is no value of YAML: {error}") from error
            return section

    Loader.add_constructor("tag:yaml.org,2002:map", Loader.construct_section)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("+-.0123456789"))
    return Loader
