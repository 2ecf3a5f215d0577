"""A figure as a part of a page, in whose colours and fonts it appears, and as files beside the page."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from longrope.report.palette import LIGHT, ROLES
from longrope.report.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 240
_TAG = re.compile(r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>")
_DROPPED = re.compile(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", re.DOTALL)
_ID = re.compile(r"(\bid=\"|href=\"#|url\(#)")
_COLOUR = re.compile(r"(?<=fill: |roke: )#[0-9a-f]{6}\b")
_FONT = re.compile(r"(font: (?:\w+ )*?[\d.]+px) [^;\"]*")


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an SVG element whose colours are the page's variables, such as ``var(--ink)``.

    Args:
        name: of the figure, unique in the page; its ids begin with it.
        label: what the figure shows, for those who do not see it.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "longrope", "svg.fonttype": "none"}):  # equal figures, equal ids
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    drawn = _DROPPED.sub("", stream.getvalue())
    start = _TAG.search(drawn)
    assert start is not None, "matplotlib writes a viewBox"
    body = _ID.sub(rf"\g<1>{name}-", drawn[start.end() :]).replace("xlink:href", "href")
    body = _FONT.sub(r"\1 var(--sans)", body)
    body = re.sub(r"\n\s*", "\n", body)
    opened = f'<svg viewBox="{start[1]}" role="img" aria-label="{escape(label)}">'
    return (
        opened + _COLOUR.sub(lambda found: f"var(--{ROLES[found[0]]})" if found[0] in ROLES else found[0], body).strip()
    )


def save_files(figure: Figure, title: str, path: Path) -> list[Path]:
    """Write the figure with its title as ``path`` with the suffixes .png and .svg."""
    figure.suptitle(title, x=0.02, horizontalalignment="left", fontsize=11, fontweight="bold", color=LIGHT["ink"])
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it has found its places, for both files
    files = [path.with_name(f"{path.name}{suffix}") for suffix in (".png", ".svg")]
    for file in files:
        save_figure(figure, file, DPI)
    return files
