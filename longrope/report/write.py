"""``longrope report``: one HTML file for some runs, and their figures as files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longrope.exceptions import SettingsError
from longrope.files import write_text_atomically
from longrope.report.content import Section
from longrope.report.page import page
from longrope.report.runs import sections_of
from longrope.report.svg import save_files

PAGE_FILE = "report.html"
PLOTS = "plots"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: the HTML file.
        plots: PNG and SVG files.
    """

    page: Path
    plots: tuple[Path, ...]


def write_report(runs: Sequence[str | Path], output: str | Path | None = None) -> Report:
    """Write the report of one or several runs; equal runs give equal files.

    Args:
        runs: folders of searches, readjustments, fine-tuning runs and evaluations.
        output: folder that receives the page and the figures; ``report`` in the folder of a single run when not given.

    Raises:
        InvalidInputError: if a folder holds no run or one without results, or matplotlib is not installed; nothing is
            written then.
    """
    if not runs:
        raise SettingsError("there are no runs to report; give the folder of one, or of several")
    if output is None and len(runs) > 1:
        raise SettingsError("several runs have no folder in common; say by --output where their report goes")
    folder = Path(runs[0]) / "report" if output is None else Path(output)
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"output {folder} is a file; give a folder")
    sections = _named_apart([section for run in runs for section in sections_of(Path(run))])
    text = page(sections)
    files = []
    for section in sections:
        for plot in section.plots:
            files += save_files(plot.figure, plot.title, folder / PLOTS / f"{section.name}-{plot.name}")
    write_text_atomically(folder / PAGE_FILE, text)
    return Report(folder / PAGE_FILE, tuple(files))


def _named_apart(sections: Sequence[Section]) -> list[Section]:
    """Sections with names that are good for files and ids, and differ: the second search is search-2."""
    seen: dict[str, int] = {}
    named = []
    for section in sections:
        name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in section.name) or "run"
        seen[name] = seen.get(name, 0) + 1
        named.append(replace(section, name=name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return named
