"""What a report says, before it is a page: sections of sentences, figures and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_THERE = "n/a"


@dataclass(frozen=True)
class Table:
    """Rows of numbers, text, or None for what is not there.

    Attributes:
        emphasised: text that the first cell of an emphasised row begins with.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    title: str = ""
    emphasised: str = "longrope"


@dataclass(frozen=True)
class Plot:
    """A figure with all that somebody needs who does not see it.

    Attributes:
        name: of its files, unique in its section.
        caption: what is drawn, and what one should know to judge it.
        alternative: what the figure shows, in words.
        table: the numbers that are drawn.
    """

    name: str
    title: str
    caption: str
    alternative: str
    figure: Figure
    table: Table


@dataclass(frozen=True)
class Section:
    """A run.

    Attributes:
        kind: of run, in a few words.
        name: of its files, unique in a report once numbered.
        source: the folder of the run, as it was given.
        findings: sentences that say what came out.
        facts: the few figures that one wants first, as (name, value).
        missing: sentences about what the run's folder does not hold.
        failures: reasons by what failed.
        records: tables of settings, versions and the like.
        command: that does it again; None where the run does not say.
        command_note: what the command leaves open.
    """

    kind: str
    title: str
    name: str
    source: str = ""
    findings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    records: tuple[Table, ...] = ()
    command: str | None = None
    command_note: str = ""


def shown(value: Any) -> str:
    """A value as a table shows it: five digits, and plainly said what is no number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOT_THERE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isinf(value):
            return "failed"
        return f"{value:,.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(each) for each in value) or "none"
    return str(value)


def flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings within settings as one list, with names such as ``memory.tile_mlp``."""
    rows: list[tuple[str, Any]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def record_table(title: str, record: dict[str, Any] | None) -> Table:
    """Names and values; says so where there is no record."""
    rows = tuple(flat(record or {})) or (("not recorded", None),)
    return Table(("name", "value"), rows, title, emphasised="\0")


def short_name(model: object) -> str:
    """What a model is called in a heading: the last part of its path or hub id."""
    name = str(model or "model").rstrip("/")
    return "embedded model" if name.endswith("longrope/demo/model") else name.rpartition("/")[2]


def when(recorded: object) -> str:
    """A recorded time in a form that can be broken into lines."""
    text = str(recorded).replace("T", " ")
    return f"{text[:-5]} {text[-5:]}" if text[-5:-4] in ("+", "-") else text
