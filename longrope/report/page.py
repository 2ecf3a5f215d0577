"""Sections as one HTML page that needs nothing from anywhere else: no script, no font, no image, no style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longrope import __version__
from longrope.exceptions import SettingsError
from longrope.report.content import NOT_THERE, Plot, Section, shown
from longrope.report.palette import DARK, LIGHT
from longrope.report.svg import inline_svg

TEMPLATE = "page.html"
STYLE = "page.css"


def page(sections: Sequence[Section]) -> str:
    """The page; everything that comes from a run is escaped.

    Raises:
        SettingsError: without jinja2.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise SettingsError(
            "a report needs jinja2, which is not installed; run `pip install longrope[report]`"
        ) from None

    def drawing(section: Section, plot: Plot) -> Markup:
        label = f"{plot.title}. {plot.alternative}"
        return Markup(inline_svg(plot.figure, f"{section.name}-{plot.name}", label))

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(drawing=drawing, shown=shown, is_number=_is_number, not_there=NOT_THERE)
    style = (here / STYLE).read_text(encoding="utf-8")
    return environment.get_template(TEMPLATE).render(
        sections=sections,
        title=sections[0].title if len(sections) == 1 else f"{len(sections)} runs",
        style=Markup(style.replace("/* light */", _variables(LIGHT)).replace("/* dark */", _variables(DARK))),
        version=__version__,
    )


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in colours.items())


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
