"""The colours of reports, in a light and a dark scheme, and how methods are told apart without them.

Figures are drawn in the light colours. Each stands for one role, so a page can put the colour of its own scheme in its
place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

LIGHT = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "axis": "#8b949e",
    "grid": "#e6e9ec",
    "paper": "#ffffff",
    "heat": "#4c9be8",
    "none": "#5b6572",
    "pi": "#0068b3",
    "ntk": "#007d5e",
    "dynamic-ntk": "#ad4f8a",
    "yarn": "#946200",
    "longrope": "#c8460b",
    "other-1": "#15799d",
    "other-2": "#7a52c7",
    "other-3": "#66730a",
}
DARK = {
    "ink": "#e6edf3",
    "muted": "#9ea8b3",
    "axis": "#6e7884",
    "grid": "#2a3037",
    "paper": "#14181d",
    "heat": "#2563a8",
    "none": "#aab3bd",
    "pi": "#5eb3f0",
    "ntk": "#35c79c",
    "dynamic-ntk": "#e39ac7",
    "yarn": "#efb73e",
    "longrope": "#ff8c55",
    "other-1": "#63cbe8",
    "other-2": "#b79bf5",
    "other-3": "#c1cf4a",
}
ROLES = {colour: role for role, colour in LIGHT.items()}

EMPHASISED = "longrope"
_MARKS: dict[str, tuple[Any, str]] = {
    "none": (":", "s"),
    "pi": ("--", "v"),
    "ntk": ("-.", "^"),
    "dynamic-ntk": ((0, (5, 1, 1, 1, 1, 1)), "P"),
    "yarn": ((0, (6, 2)), "D"),
    "longrope": ("-", "o"),
    "other-1": ((0, (3, 1)), "X"),
    "other-2": ((0, (1, 1)), "*"),
    "other-3": ((0, (8, 2, 1, 2)), "p"),
}
_ALIASES = {"identity": "none", "before": "none", "after": "longrope", "long": "yarn", "present": "pi"}


class Look(NamedTuple):
    """What a series is drawn with."""

    colour: str
    line: Any
    marker: str
    width: float


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for every name: that of its method in every figure, and of the others one that no other has."""
    found, others = {}, iter(("other-1", "other-2", "other-3") * (len(names) // 3 + 1))
    for name in names:
        method = re.split(r"[ ,(]", name.lower(), maxsplit=1)[0]
        role = _ALIASES.get(method, method)
        if role not in _MARKS:
            role = next(others)
        line, marker = _MARKS[role]
        found[name] = Look(LIGHT[role], line, marker, 2.4 if role == EMPHASISED else 1.5)
    return found
