"""Templates: one a file, each turning the records of a source into documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from longrope.data.templates.chapter_summary import ChapterSummary
from longrope.data.templates.few_shot import FewShot
from longrope.data.templates.instruction import Instruction
from longrope.data.templates.multi_document_qa import MultiDocumentQA
from longrope.data.templates.template import Template
from longrope.data.templates.text import Text
from longrope.data.templates.tokenized import Tokenized
from longrope.exceptions import SettingsError
from longrope.lengths import parse_length

TEMPLATES: dict[str, type[Template]] = {
    template.name: template for template in (Text, FewShot, Instruction, MultiDocumentQA, ChapterSummary, Tokenized)
}


def build_template(name: str, options: Mapping[str, Any]) -> Template:
    """The template called ``name`` with ``options``, whose numbers may be written as lengths (``32k``).

    Raises:
        SettingsError: if there is no such template or option, or an option cannot have that value.
    """
    if name not in TEMPLATES:
        raise SettingsError(f"template {name!r} is not known; known are {', '.join(TEMPLATES)}")
    kinds = {field.name: field.type for field in fields(TEMPLATES[name])}
    given: dict[str, Any] = {}
    for option, value in options.items():
        if option not in kinds:
            raise SettingsError(f"template {name!r} has no option {option!r}; it has {', '.join(kinds)}")
        if kinds[option] == "int":
            value = parse_length(value)
        elif not isinstance(value, str):
            raise SettingsError(f"option {option!r} of template {name!r} is {value!r}; give text")
        given[option] = value
    return TEMPLATES[name](**given)
