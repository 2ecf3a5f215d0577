"""Write a model folder that plain transformers loads with our factors, in the form of its rope type ``longrope``.

Plain transformers has two lists of factors and one attention factor, and no n_hat. What does not fit is either
refused (n_hat) or said (more windows, attention factors that differ). A modeling file in the folder, run with
``trust_remote_code``, does it all.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.exceptions import FactorsError, SettingsError, UnsupportedModelError
from longrope.export.card import CARD_FILE, Card, Origin, write_card
from longrope.export.code import CODE_FILE, add_code, remove_code
from longrope.export.config import CONFIG_FORMATS, set_longrope, to_v4, v4_losses
from longrope.export.folder import refuse_occupied, whole_folder
from longrope.export.n_hat import without_n_hat as flat
from longrope.export.recipe import model_name
from longrope.export.two_lists import two_lists
from longrope.export.weights import INDEX_FILE, WEIGHTS_SUFFIX, NewWeights, is_foreign, weight_files
from longrope.files import write_text_atomically
from longrope.lengths import format_length
from longrope.model.load import ModelSource
from longrope.model.rope_config import SCHEDULE_FILE, ModelRope, check_attention_span, read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

_REPLACED = {"config.json", INDEX_FILE, SCHEDULE_FILE, CARD_FILE, CODE_FILE}
_TEMPLATES = "additional_chat_templates"  # the one folder of a tokenizer


@dataclass(frozen=True)
class Exported:
    """What was written, and what plain transformers will do differently from the schedule."""

    folder: Path
    schedule: FactorSchedule
    losses: tuple[str, ...]


def export_folder(
    source: ModelSource,
    factors: RopeFactors | FactorSchedule,
    output: str | Path,
    without_n_hat: bool = False,
    *,
    short_window: int | None = None,
    single_list: bool = False,
    attention_factor: str = "long",
    config_format: str = "v5",
    code: bool = False,
    config_only: bool = False,
    copy: bool = False,
    name: str | None = None,
    new_weights: NewWeights | None = None,
    origin: Origin | None = None,
) -> Exported:
    """Write ``output``: config, weights, tokenizer, the schedule in longrope.json, and a model card.

    Args:
        source: the model the factors were made for.
        factors: of one window, which is put on top of the model's present ones, or a whole schedule.
        without_n_hat: replace factors with n_hat > 0 by the best candidate with n_hat = 0 of the same search.
        short_window: length of the window that becomes the short list of plain transformers; see
            :func:`longrope.export.two_lists.two_lists`.
        single_list: leave out the windows below the longest, so that both lists are the long one, for engines that
            keep their cache where the lists change or have one list for all lengths.
        attention_factor: whose attention factor plain transformers gets, which has one: that of the ``long`` or of the
            ``short`` list. The modeling file, longrope.load and vLLM have both.
        config_format: ``v5``, or ``v4`` for transformers 4 and other older readers.
        code: add the modeling file that has n_hat and all windows with ``trust_remote_code``.
        config_only: write no weights.
        copy: copy the weights even where they could be hard-linked.
        name: what the card calls the folder, for example its future hub id; the folder's own name when not given.
        new_weights: take the place of the model's weights, for example after training.
        origin: what the card tells of the weights, where they are not simply those of ``source``.

    Raises:
        FactorsError: if the factors do not fit the model, or need n_hat.
        SettingsError: if the options contradict each other or the schedule.
        UnsupportedModelError: if the model has no complete safetensors weights, or its architecture is not supported.
        RunExistsError: if ``output`` exists and is not empty.
    """
    output = Path(output)
    refuse_occupied(output)
    if config_format not in CONFIG_FORMATS:
        raise SettingsError(f"config format {config_format!r} is not known; use {' or '.join(CONFIG_FORMATS)}")
    own_weights = not config_only and new_weights is None
    folder = source.folder(weights=own_weights)
    config = source.load_config()
    rope = read_rope(config, folder)
    window = config.max_position_embeddings
    schedule = _schedule(rope, factors)
    check_attention_span(config, schedule.windows[-1].max_length)
    if not code:
        schedule = FactorSchedule(
            tuple(Window(each.max_length, flat(each.factors, without_n_hat)) for each in schedule.windows)
        )
    remove_code(config)
    losses = set_longrope(config, schedule, short_window, single_list, attention_factor)
    lists = two_lists(schedule, short_window, single_list, attention_factor)
    if config_format == "v4":
        losses += v4_losses(config.model_type, lists)
    own = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if own and not code:
        losses += (
            f"trust_remote_code runs the model's own code, {own}, which may ignore the factors; load without it",
        )
    if single_list:  # what the folder means everywhere, to longrope.load too
        schedule = FactorSchedule(schedule.windows[-1:])
    weights = weight_files(folder) if own_weights else []
    if new_weights is not None and new_weights.dtype is not None:
        config.dtype = new_weights.dtype
    if origin is None:
        options = _options(short_window, single_list, attention_factor, config_format, code, config_only)
        origin = _unchanged(source, bool(weights), options)
    card = Card(
        name=name or output.resolve().name,
        model=origin.source.name,
        source=folder if origin.source == source else origin.source.folder(weights=False),
        config=config,
        schedule=schedule,
        lists=lists,
        losses=losses,
        code=code,
        told=origin.told,
        command=origin.command,
        measured=origin.measured,
    )
    with whole_folder(output) as written, _quiet_transformers():
        if code:
            add_code(written, config, schedule)
        config.save_pretrained(written)
        longest = schedule.windows[-1].max_length
        generation = _longer(_generation_settings(folder), window, longest)
        _edit_json(written / "config.json", lambda settings: {**generation, **settings})
        if config_format == "v4":
            _edit_json(written / "config.json", to_v4)
        schedule.save(written / SCHEDULE_FILE)
        if new_weights is not None:
            new_weights.write(written)
        for path in weights:
            _place(path, written / path.name, link=not copy)
        for path in _others(folder):
            _place(path, written / path.name, link=False)
        if (folder / _TEMPLATES).is_dir():
            shutil.copytree(folder / _TEMPLATES, written / _TEMPLATES)
        _edit_json(written / "tokenizer_config.json", lambda settings: {**settings, "model_max_length": longest})
        _edit_json(written / "generation_config.json", lambda settings: _longer(settings, window, longest))
        write_card(card, written)
    return Exported(output, schedule, losses)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No warnings of keys in the rope parameters that are meant for other engines."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _schedule(rope: ModelRope, factors: RopeFactors | FactorSchedule) -> FactorSchedule:
    reference = factors if isinstance(factors, RopeFactors) else factors.reference
    reference.check_fits(rope.rope_theta, rope.rotary_dim)
    if reference.original_length != rope.original_length:
        raise FactorsError(
            f"the factors have original_length {format_length(reference.original_length)}, the model was pretrained on "
            f"{format_length(rope.original_length)} tokens; use factors searched on this model"
        )
    return rope.extended_by(factors) if isinstance(factors, RopeFactors) else factors


def _unchanged(source: ModelSource, weights: bool, options: str) -> Origin:
    """What the card tells of a model that only gets factors."""
    revision = f" --model-revision {source.revision}" if source.revision else ""
    chosen = f" {options}" if options else ""
    return Origin(
        source=source,
        told="The weights are those of the model, unchanged."
        if weights
        else "This folder holds no weights: lay its files over those of the model.",
        command=f"apply {model_name(source.name)}{revision} --factors longrope.json{chosen} --output FOLDER",
    )


def _options(
    short_window: int | None,
    single_list: bool,
    attention_factor: str,
    config_format: str,
    code: bool,
    config_only: bool,
) -> str:
    """The options of the command line that write the same folder again."""
    words = ["--short-window", format_length(short_window)] if short_window is not None else []
    words += ["--attention-factor", attention_factor] if attention_factor != "long" else []
    words += ["--config-format", config_format] if config_format != "v5" else []
    flags = {"--single-list": single_list, "--code": code, "--config-only": config_only}
    return shlex.join([*words, *(name for name, chosen in flags.items() if chosen)])


def _others(folder: Path) -> Iterable[Path]:
    """The files beside weights and config: the tokenizer, a license, code of the model, ..."""
    for path in sorted(folder.iterdir()):
        skipped = path.name in _REPLACED or path.name.endswith(WEIGHTS_SUFFIX) or is_foreign(path)
        if path.is_file() and not skipped:
            yield path


def _generation_settings(folder: Path) -> dict[str, Any]:
    """The settings of generation in an older config.json, which transformers 5 reads there and writes there no more."""
    from transformers import GenerationConfig

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: settings[name] for name in vars(GenerationConfig()) if name in settings}


def _longer(settings: dict[str, Any], window: int, longest: int) -> dict[str, Any]:
    """Generation settings that ended at the old window end at the new one."""
    return {**settings, "max_length": longest} if settings.get("max_length") == window else settings


def _edit_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change an object in a file of the new folder; all else in the file stays as it was written."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{path.name} of the model is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path.name} of the model holds {type(content).__name__}, expected an object")
    write_text_atomically(path, json.dumps(change(content), indent=2, ensure_ascii=False) + "\n")


def _place(path: Path, target: Path, link: bool) -> None:
    """Hard-link a weight file, or copy where file systems differ; other files are copied, for they may be edited."""
    if link:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:
            pass
    shutil.copy2(path, target)
