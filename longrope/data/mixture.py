"""What a model is trained on: named sources of documents, and the share of tokens of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from longrope.data.decontamination import NGRAM
from longrope.data.documents import HUB_NAME, files_of
from longrope.data.file_records import FileRecords
from longrope.data.hub_records import HubRecords
from longrope.data.records import Records
from longrope.data.templates import TEMPLATES, build_template
from longrope.data.templates.template import Template
from longrope.data.templates.text import Text
from longrope.data.yaml_file import Section, read_yaml
from longrope.exceptions import DataError, InvalidInputError, SettingsError
from longrope.lengths import parse_length
from longrope.shipped import shipped

_SUFFIXES = (".yaml", ".yml")
_SOURCE_KEYS = (
    "path",
    "hub",
    "weight",
    "min_length",
    "max_length",
    "field",
    "split",
    "config",
    "revision",
    "files",
    "template",
)
_MIXTURE_KEYS = ("sources", "bos", "eos", "decontaminate", "ngram")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Documents of one kind.

    Attributes:
        name: how the source is called in logs and states.
        path: a file or folder; or
        hub: the id of a Hugging Face dataset.
        weight: share of the tokens; the weights of a mixture need not sum to 1.
        min_length: fewest tokens of a document; shorter ones are left out.
        max_length: most tokens of a document; longer ones are left out. None for no limit.
        split: of a hub dataset, as are ``config``, ``revision`` and ``files``.
        config: name of a configuration.
        revision: branch, tag or commit.
        files: files of the repository, or patterns, instead of a configuration.
        template: turns records into documents.
    """

    name: str
    path: Path | None = None
    hub: str | None = None
    weight: float = 1.0
    min_length: int = 1
    max_length: int | None = None
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    template: Template = field(default_factory=Text)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise DataError(f"source {self.name!r} needs either a path or a hub id")
        if self.hub is None and (self.config or self.revision or self.files):
            raise DataError(f"source {self.name!r} is a path; config, revision and files are for hub datasets")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise DataError(f"the weight of source {self.name!r} is {self.weight}; give a number of at least 0")
        if self.min_length < 1 or (self.max_length is not None and self.max_length < self.min_length):
            raise DataError(
                f"source {self.name!r} has min_length {self.min_length} and max_length {self.max_length}; "
                "no document has such a length"
            )

    @property
    def place(self) -> str:
        """Where the documents are, for people."""
        return str(self.hub if self.path is None else self.path)

    def records(self, seed: int) -> Records:
        """The records, in an order for every epoch that ``seed`` decides. Files are indexed here."""
        columns, key = self.template.columns, (seed, self.name)
        if self.hub is not None:
            return HubRecords(
                self.hub,
                config=self.config,
                split=self.split,
                revision=self.revision,
                files=self.files,
                columns=columns,
                key=key,
            )
        assert self.path is not None
        files = files_of(self.path) if self.path.exists() else None
        if files is None:
            raise DataError(f"source {self.name!r}: {str(self.path)!r} does not exist")
        return FileRecords(files, columns=columns, text_field=self.template.text_field, key=key)

    @property
    def identity(self) -> list[Any]:
        """What the documents depend on beside the records, as JSON."""
        # Options that have their default are left out, so that a new one does not make old checkpoints foreign.
        options = {
            option.name: getattr(self.template, option.name)
            for option in fields(self.template)
            if getattr(self.template, option.name) != option.default
        }
        return [self.name, self.weight, self.min_length, self.max_length, self.template.name, options]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sources, and how their documents are joined.

    Attributes:
        sources: at least one, whose weights sum to more than 0.
        bos: begin documents and segments with BOS: ``None`` where the tokenizer puts it in front of a text,
            ``True`` wherever it has one, ``False`` never.
        eos: end documents and segments with EOS, where the tokenizer has it.
        decontaminate: evaluation files; documents that share an n-gram of words with them are left out.
        ngram: words in a row.
    """

    sources: tuple[Source, ...]
    bos: bool | None = None
    eos: bool = True
    decontaminate: tuple[Path, ...] = ()
    ngram: int = NGRAM

    def __post_init__(self) -> None:
        if not self.sources:
            raise DataError("the mixture is empty; give at least one source")
        if len({source.name for source in self.sources}) < len(self.sources):
            raise DataError("two sources of the mixture have the same name")
        if not sum(source.weight for source in self.sources) > 0:
            raise DataError("the weights of the mixture sum to 0; give at least one source a weight above 0")
        if self.ngram < 1:
            raise DataError(f"ngram is {self.ngram}; give at least 1 word")


def ready_mixtures() -> dict[str, Path]:
    """The mixtures that come with longrope, by name."""
    return {path.stem: path for path in sorted(shipped("data").glob("*.yaml"))}


def read_mixture(source: str | Path, *, field: str = "text", split: str = "train") -> Mixture:
    """A mixture file, the name of a ready mixture, or a mixture of one source.

    Args:
        source: a .yaml file; a name in :func:`ready_mixtures`; a .txt, .md, .jsonl or .parquet file, or a folder of
            them; or the id of a Hugging Face dataset.
        field: of one source, the field that holds the text.
        split: of one hub dataset.

    Raises:
        DataError: if there is no such data, or the mixture file is wrong; the line is named.
        SettingsError: if ``field`` or ``split`` is given with a mixture file.
    """
    path = Path(source)
    if not path.exists() and str(source) in ready_mixtures():
        path = ready_mixtures()[str(source)]
    if path.suffix.lower() not in _SUFFIXES:
        files = files_of(source)
        where: dict[str, Any] = {"hub": str(source), "split": split} if files is None else {"path": path}
        return Mixture(sources=(Source(name=path.stem or str(path), template=Text(field=field), **where),))
    if (field, split) != ("text", "train"):
        raise SettingsError(f"the mixture file {str(source)!r} says field and split for each source; do not give them")
    if not path.exists():
        raise DataError(f"the mixture file {str(source)!r} does not exist")
    return _read_file(path)


def _read_file(path: Path) -> Mixture:
    content = read_yaml(path)
    content.refuse_unknown(_MIXTURE_KEYS, "a mixture")
    listed = content.get("sources")
    if not listed:
        raise content.error("sources", "the mixture is empty; name its sources under sources:")
    if not isinstance(listed, Section):
        raise content.error("sources", "sources is no mapping; write the name of each source, and its keys below")
    sources = tuple(_source(name, listed, path.parent) for name in listed)
    files = _texts(content, "decontaminate")
    missing = [name for name in files if not (path.parent / name).exists()]
    if missing:
        raise content.error("decontaminate", f"the evaluation file {missing[0]!r} does not exist")
    bos = content.get("bos", "auto")
    try:
        return Mixture(
            sources=sources,
            bos=None if bos == "auto" else _truth(content, "bos", "auto, true or false"),
            eos=_truth(content, "eos", "true or false") if "eos" in content else True,
            decontaminate=tuple(path.parent / name for name in files),
            ngram=_length(content, "ngram") or NGRAM,
        )
    except DataError as error:
        raise error if str(error).startswith(repr(str(path))) else DataError(f"{str(path)!r}: {error}") from None


def _source(name: str, listed: Section, folder: Path) -> Source:
    given = listed[name]
    if not isinstance(given, Section):
        raise listed.error(name, f"source {name!r} is no mapping; write its keys below its name")
    given.refuse_unknown(_SOURCE_KEYS, "a source")
    path, hub = _text(given, "path"), _text(given, "hub")
    if path is not None and not (folder / path).exists():
        raise given.error("path", f"{path!r} does not exist; paths are relative to the mixture file")
    if hub is not None and not HUB_NAME.fullmatch(hub):
        raise given.error("hub", f"{hub!r} is not the id of a dataset; write owner/name")
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise given.error("weight", f"weight is {weight!r}; give a number, such as 0.25")
    try:
        return Source(
            name=name,
            path=None if path is None else folder / path,
            hub=hub,
            weight=float(weight),
            min_length=_length(given, "min_length") or 1,
            max_length=_length(given, "max_length"),
            split=_text(given, "split") or "train",
            config=_text(given, "config"),
            revision=_text(given, "revision"),
            files=_texts(given, "files"),
            template=_template(given),
        )
    except InvalidInputError as error:
        if str(error).startswith(repr(str(given.path))):
            raise
        raise listed.error(name, error) from None


def _template(given: Section) -> Template:
    named = given.get("template", Text.name)
    options: dict[str, Any] = {}
    if isinstance(named, Section):
        options = dict(named)
        named = options.pop("name", None)
    if not isinstance(named, str):
        raise given.error("template", f"template has no name; known are {', '.join(TEMPLATES)}")
    if "field" in given:
        if named != Text.name:
            raise given.error("field", f"field is for plain text; template {named!r} names its fields itself")
        options["field"] = given["field"]
    try:
        return build_template(named, options)
    except InvalidInputError as error:
        raise given.error("template", error) from None


def _text(section: Section, key: str) -> str | None:
    value = section.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise section.error(key, f"{key} is {value!r}; give text")
    return value


def _texts(section: Section, key: str) -> tuple[str, ...]:
    value = section.get(key) or []
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise section.error(key, f"{key} is {value!r}; give a list of names")
    return tuple(value)


def _length(section: Section, key: str) -> int | None:
    value = section.get(key)
    if value is None:
        return None
    try:
        return parse_length(value)
    except SettingsError as error:
        raise section.error(key, f"{key}: {error}") from None


def _truth(section: Section, key: str, allowed: str) -> bool:
    value = section[key]
    if not isinstance(value, bool):
        raise section.error(key, f"{key} is {value!r}; give {allowed}")
    return value
