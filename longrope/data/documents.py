"""Documents from where people keep them: text, JSON Lines and Parquet files, folders, and the Hugging Face hub.

Nothing is held beyond the document at hand: files are opened one after the other, JSON Lines are read line by
line, Parquet in batches, and hub datasets are streamed.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.exceptions import DataError

PARQUET_BATCH = 16  # rows decoded at a time; a row may be a whole book

# What the hub accepts as a repository name, with or without its owner.
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Document:
    """A text, and a name by which a person finds it: ``path``, ``path:line``, or ``dataset:index``."""

    name: str
    text: str


def read_documents(
    source: str | Path,
    *,
    field: str = "text",
    split: str = "train",
    revision: str | None = None,
    config: str | None = None,
    seed: int = 0,
) -> Iterator[Document]:
    """The documents of ``source``, in an order that is the same every time.

    Texts without any visible character are passed over. All line ends are read as line feeds.

    Args:
        source: a .txt or .md file (one document), a .jsonl file (one object a line), a .parquet file, a folder
            (those files in it and below, ordered by path; hidden ones and other kinds are passed over), or,
            where no such path exists, the id of a Hugging Face dataset (``name`` or ``owner/name``).
        field: the JSON Lines key, or the column, that holds the text.
        split: of a hub dataset, as are ``revision`` and ``config``.
        revision: branch, tag or commit of a hub dataset.
        config: name of a configuration of a hub dataset.
        seed: shuffles the stream of a hub dataset; files are not shuffled.

    Raises:
        DataError: at once if ``source`` is no such file or folder; while iterating if a hub dataset cannot be
            loaded, a document cannot be read, or there are none.
    """
    files = files_of(source)
    if files is None:
        return _never_empty(_read_dataset(str(source), field, split, revision, config, seed), str(source))
    return _never_empty(_read_files(files, field), str(source))


def files_of(source: str | Path) -> list[Path] | None:
    """The files that ``source`` names; None where it is the id of a hub dataset.

    Raises:
        DataError: if it is neither.
    """
    path = Path(source)
    if path.is_dir():
        return files_below(path)
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise DataError(f"data {str(source)!r} is not a kind of file that can be read; give {KINDS} or a folder")
        if path.stat().st_size == 0:
            raise DataError(f"data {str(source)!r} is an empty file")
        return [path]
    if path.exists():
        raise DataError(f"data {str(source)!r} is neither a regular file nor a folder")
    if HUB_NAME.fullmatch(str(source)) and path.suffix.lower() not in _READERS:
        return None
    raise DataError(f"data {str(source)!r} does not exist; give {KINDS}, a folder, or a Hugging Face dataset id")


def _never_empty(documents: Iterable[Document], source: str) -> Iterator[Document]:
    document = None
    for document in documents:
        yield document
    if document is None:
        raise DataError(f"data {source!r} holds no text")


# --- Files ---


def files_below(folder: Path) -> list[Path]:
    """The files in ``folder`` and below that can be read, ordered by path; hidden ones are passed over."""
    found = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.suffix.lower() in _READERS and not hidden and path.is_file():
            found[parts] = path
    if not found:
        raise DataError(f"data folder {str(folder)!r} holds no {KINDS} files")
    return [found[parts] for parts in sorted(found)]


def _read_files(files: Iterable[Path], field: str) -> Iterator[Document]:
    for path in files:
        try:
            yield from _READERS[path.suffix.lower()](path, field)
        except OSError as error:
            raise DataError(f"data file {str(path)!r} cannot be read: {in_one_line(error)}") from error


def _read_text(path: Path, field: str) -> Iterator[Document]:
    text = text_of(path)
    if text.strip():
        yield Document(str(path), text)


def text_of(path: Path) -> str:
    """A text file with line feeds at its line ends."""
    return decode_text(path.read_bytes(), str(path)).replace("\r\n", "\n").replace("\r", "\n")


def _read_jsonl(path: Path, field: str) -> Iterator[Document]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"line {number} of {str(path)!r}"
            record = parse_line(line, where)
            text = None if record is None else field_text(record, field, where)
            if text is not None:
                yield Document(f"{path}:{number}", text)


def parse_line(line: bytes, where: str) -> dict[str, Any] | None:
    """The JSON object of a line of JSON Lines; None for a blank line."""
    content = decode_text(line, where)
    if not content.strip():
        return None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {in_one_line(error)}") from error
    if not isinstance(record, dict):
        raise DataError(f'{where} is not a JSON object; write one {{"text": ...}} a line')
    return record


def _read_parquet(path: Path, field: str) -> Iterator[Document]:
    if path.stat().st_size == 0:
        return
    arrow = import_for("pyarrow", f"reading {str(path)!r}")
    parquet = import_for("pyarrow.parquet", f"reading {str(path)!r}")
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            require_field(field, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=[field]):
                for value in batch.column(0).to_pylist():
                    text = field_text({field: value}, field, f"row {row} of {str(path)!r}")
                    if text is not None:
                        yield Document(f"{path}:{row}", text)
                    row += 1
    except arrow.ArrowException as error:
        raise DataError(f"data file {str(path)!r} cannot be read as Parquet: {in_one_line(error)}") from error


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
KINDS = ", ".join(_READERS)


def decode_text(data: bytes, where: str) -> str:
    """The text that UTF-8 ``data`` holds; an error names ``where``."""
    # UTF-16 text has NUL bytes as well: both are told apart from text by them before decoding is tried.
    if b"\0" in data:
        raise DataError(f"{where} holds NUL bytes: it is binary, or not in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}") from error


# --- Hugging Face hub ---

SHUFFLE_BUFFER = 256  # documents; a whole book each at worst


def _read_dataset(
    name: str, field: str, split: str, revision: str | None, config: str | None, seed: int
) -> Iterator[Document]:
    datasets = import_for("datasets", f"data {name!r} is no file or folder, and reading it from the Hugging Face hub")
    try:
        dataset = datasets.load_dataset(name, name=config, split=split, revision=revision, streaming=True)
    except Exception as error:  # whatever the network, the hub or the dataset's own files can raise
        raise DataError(
            f"data {name!r} is no file or folder, and not a Hugging Face dataset that can be read "
            f"(split {split!r}): {in_one_line(error)}"
        ) from error
    if dataset.column_names is not None:
        require_field(field, dataset.column_names, name)
        dataset = dataset.select_columns([field])
    rows = iter(dataset.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER))
    index = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"dataset {name!r} stopped after {index} rows: {in_one_line(error)}") from error
        text = field_text(row, field, f"row {index} of {name!r}")
        if text is not None:
            yield Document(f"{name}:{index}", text)
        index += 1


# --- What every kind shares ---


def field_text(record: Mapping[str, Any], field: str, where: str) -> str | None:
    """The text in ``field``; None when it is null or blank."""
    require_field(field, record, where)
    text = record[field]
    if text is None:
        return None
    if not isinstance(text, str):
        raise DataError(f"field {field!r} in {where} is not text but {type(text).__name__}; name another field")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half a surrogate pair, which no tokenizer accepts
            raise DataError(f"field {field!r} in {where} is not valid Unicode: {error.reason}") from error
    return text if text.strip() else None


def require_field(field: str, names: Iterable[str], where: str) -> None:
    """Raise a DataError that lists ``names`` if ``field`` is not among them."""
    names = list(names)
    if field not in names:
        present = ", ".join(map(repr, names)) or "none"
        raise DataError(f"there is no field {field!r} in {where}; its fields are {present}")


def import_for(module: str, purpose: str) -> Any:
    """A module of the extra ``data``; a DataError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f"{purpose} needs the package {package}: pip install longrope[data]") from error


def in_one_line(error: BaseException) -> str:
    """What an exception says, on one line and cut short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:200] + "..."
