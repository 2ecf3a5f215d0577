"""Lengths in tokens, as people write them: ``2048``, ``4k``, ``128k``, ``2m`` (k = 1024, m = 1024 * 1024)."""

from __future__ import annotations

import re

from longrope.exceptions import SettingsError

_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([km]?)", re.ASCII)


def parse_length(text: str | int) -> int:
    """Tokens in ``text``; ``128k`` is 131072.

    Raises:
        SettingsError: if ``text`` is not a positive whole number of tokens.
    """
    match = _LENGTH.fullmatch(str(text).strip().lower().replace("_", ""))
    tokens = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if tokens < 1 or tokens != int(tokens):
        raise SettingsError(f"length {text!r} is not a positive whole number of tokens; write 4096, 128k or 2m")
    return int(tokens)


def parse_lengths(text: str) -> tuple[int, ...]:
    """Lengths in a comma-separated list, in the order given: ``256,512,4k``."""
    return tuple(parse_length(part) for part in text.split(",") if part.strip())


def format_length(tokens: int) -> str:
    """The shortest exact way to write ``tokens``: 131072 is ``128k``, 1000 stays ``1000``."""
    for suffix in ("m", "k"):
        if tokens >= _UNITS[suffix] and tokens % _UNITS[suffix] == 0:
            return f"{tokens // _UNITS[suffix]}{suffix}"
    return str(tokens)
