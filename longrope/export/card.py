"""The model card of an exported folder: what it is, how to serve it, how the factors were made, what was measured."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope import __version__
from longrope.export.recipe import method, model_name, recipe
from longrope.export.serving import serving
from longrope.export.two_lists import TwoLists
from longrope.files import write_text_atomically
from longrope.lengths import format_length
from longrope.model.load import ModelSource
from longrope.rope.policy import FactorSchedule

CARD_FILE = "README.md"
ORIGINAL_CARD_FILE = "README.original.md"
_MARK = "<!-- This card was written by longrope"
_RESULTS, _END = "<!-- results of the run -->", "<!-- end of results -->"
_CARRIED = ("license", "license_name", "license_link", "language")
_PAPER = "[LongRoPE](https://arxiv.org/abs/2402.13753)"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights of a folder come from, as its card tells it.

    Attributes:
        source: the model that the work began with.
        told: a sentence on what was done to its weights.
        command: the command line, after ``longrope``, that makes the folder again.
        measured: whether the card has a section for results, which :func:`put_results` fills.
    """

    source: ModelSource
    told: str
    command: str
    measured: bool = False


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card tells of.

    Attributes:
        name: what stands for the folder in titles and commands.
        model: the folder or hub id of the model.
        source: the local folder of the model, with its own card.
        config: the transformers config.
        schedule: what sequences are to use.
        lists: what engines with two lists read.
        losses: what plain transformers does differently.
        code: whether the folder holds the modeling file.
        told: a sentence on the weights.
        command: the command line, after ``longrope``, that makes the folder again.
        measured: whether there is a section for results.
    """

    name: str
    model: str
    source: Path
    config: Any
    schedule: FactorSchedule
    lists: TwoLists
    losses: tuple[str, ...]
    code: bool
    told: str
    command: str
    measured: bool


def write_card(card: Card, folder: Path) -> None:
    """Write the card into ``folder``, which is complete but for it, and the model's own card beside it."""
    own = card.source / CARD_FILE
    if own.is_file() and _MARK not in own.read_text(encoding="utf-8", errors="replace"):
        shutil.copyfile(own, folder / ORIGINAL_CARD_FILE)
    write_text_atomically(folder / CARD_FILE, _text(card, folder))


def put_results(folder: Path, results: str) -> None:
    """Put results between the marks that the card in ``folder`` has for them, and leave all else as it is.

    A card without the marks, or of another encoding, is somebody else's and stays.
    """
    path = folder / CARD_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return
    head, begins, rest = text.partition(_RESULTS)
    _, ends, tail = rest.partition(_END)
    changed = f"{head}{_RESULTS}\n\n{results}\n\n{_END}{tail}"
    if begins and ends and changed != text:
        write_text_atomically(path, changed)


def _text(card: Card, folder: Path) -> str:
    lists = card.lists
    window, original = format_length(lists.long.max_length), format_length(lists.original_length)
    base = _base_model(card)
    shown = f"[{base}](https://huggingface.co/{base})" if isinstance(base, str) else f"`{model_name(card.model)}`"
    parts = [
        f"---\n{_metadata(card, base)}\n---",
        f"{_MARK} {__version__}. -->",
        f"# {card.name}",
        f"{shown} with a context window of {window} tokens: its rotary position embedding is rescaled by factors of "
        f"{_PAPER}. It was pretrained on {original} tokens. {card.told}",
    ]
    if (folder / ORIGINAL_CARD_FILE).exists():
        parts.append(f"The model's own card is [{ORIGINAL_CARD_FILE}]({ORIGINAL_CARD_FILE}).")
    if card.measured:
        parts += ["## Results", f"{_RESULTS}\n\nThe run has not ended yet.\n\n{_END}"]
    parts += [
        "## Windows",
        "A sequence uses the first window that holds it, from its first token on. n_hat start tokens keep their plain "
        "angles, the attention factor multiplies cosine and sine, and lambda divides the frequencies. All numbers are "
        "in `longrope.json`.",
        _windows(card.schedule),
        "## Serving",
        *serving(folder, card.name, lists, card.losses, card.code),
        "## How the factors were made",
        *recipe(card.schedule),
        "## This folder again",
        f"    longrope {card.command}",
    ]
    return "\n\n".join(parts) + "\n"


def _windows(schedule: FactorSchedule) -> str:
    lines = [
        "| up to | n_hat | attention factor | lambda, first to last pair | from |",
        "|---:|---:|---:|---|---|",
    ]
    for window in schedule.windows:
        factors = window.factors
        lines.append(
            f"| {format_length(window.max_length)} | {factors.n_hat} | {factors.attention_factor:.6g} | "
            f"{factors.lambdas[0]:g} to {factors.lambdas[-1]:g} | {method(factors)} |"
        )
    return "\n".join(lines)


def _metadata(card: Card, base: Any) -> str:
    from huggingface_hub import ModelCardData

    carried = {name: value for name, value in _source_metadata(card.source).items() if name in _CARRIED}
    if "license" not in carried and isinstance(getattr(card.config, "license", None), str):
        carried["license"] = card.config.license
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["longrope", "rope", "long-context"],
        **carried,
    )
    return str(data.to_yaml())


def _source_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of the model's own card; empty where there is none that can be read."""
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        return dict(metadata_load(folder / CARD_FILE) or {})
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _base_model(card: Card) -> Any:
    """The model's hub id; for a folder that is no download, what its own card says it was made from."""
    if not Path(card.model).is_dir():
        return card.model
    repository = card.source.resolve().parent.parent.name
    if card.source.resolve().parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return _source_metadata(card.source).get("base_model")
