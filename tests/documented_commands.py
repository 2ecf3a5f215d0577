"""What a page of documentation gives its readers to run, from top to bottom."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COMMAND = "command"
_BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>(?:(?!```)[^\n]*\n)*)```$"
    r"|(?<=\n\n)(?P<indented>(?: {4}[^\n]+\n)+)"
    r"|^\| `(?P<row>longrope [^`]+)` \|",
    re.MULTILINE,
)


class Block(NamedTuple):
    """A command, or a fenced block.

    Attributes:
        place: page and line.
        language: of a fenced block; otherwise that this is a command.
        text: of a command one line, as the page has it.
    """

    place: str
    language: str
    text: str

    @property
    def words(self) -> list[str]:
        """Of a command, as a shell splits them."""
        return shlex.split(self.text, comments=True)


def blocks(page: str, section: str = "") -> list[Block]:
    """Indented commands, those that begin a row of a table, and fenced blocks, in the order of the page.

    Args:
        page: from the root of the project.
        section: heading of the only section to read.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    begin = text.index(f"\n## {section}\n") + 1 if section else 0
    end = text.find("\n## ", begin) + 1 if section else 0
    found = []
    for match in _BLOCK.finditer(text, begin, end or len(text)):
        place = f"{page}:{text.count(chr(10), 0, match.start()) + 1}"
        if match["language"] is not None:
            found.append(Block(place, match["language"], match["fenced"]))
        else:
            lines = re.sub(r"\\\n\s*", "", match["row"] or match["indented"]).splitlines()
            found.extend(Block(place, COMMAND, line.strip()) for line in lines)
    assert found, f"{page} has nothing to run"
    return found
