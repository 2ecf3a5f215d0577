"""Factors from Hugging Face configs, spelled for transformers 4 or 5.

The published spellings are older than the transformers that reads them, and some no longer load: rope type ``su``,
Phi-3's ``yarn`` that meant the same, and original lengths inside ``rope_scaling`` only. They are brought into the
form of today before transformers sees them.
"""

from __future__ import annotations

import copy
import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longrope.exceptions import FactorsError, InvalidInputError, SettingsError, UnsupportedModelError
from longrope.importers.imported import Imported, finish
from longrope.lengths import format_length
from longrope.model.architectures import ARCHITECTURES, GLOBAL_LAYERS
from longrope.model.rope_config import SCHEDULE_FILE, ModelRope, read_rope
from longrope.rope.methods import DynamicNTK
from longrope.rope.policy import FactorSchedule

_OLD_NAMES = ("su", "yarn")  # of longrope; yarn only where there are lists
_VERSION = "transformers_version"
_MSCALES = ("short_mscale", "long_mscale")
_NUMBERS = (
    "hidden_size",
    "num_attention_heads",
    "head_dim",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rope_theta",
    "partial_rotary_factor",
    "rope_scaling",
    "rope_parameters",
)


def find_config(name: str, revision: str | None = None) -> Path:
    """The config.json that a file, a folder or a hub id stands for; of a hub model nothing else is fetched.

    Raises:
        UnsupportedModelError: if there is none.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise UnsupportedModelError(f"{name} holds no config.json; give a Hugging Face model folder")
    if path.is_file():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or name.endswith((".json", ".csv")):
        raise UnsupportedModelError(f"{name} does not exist; give a file, a model folder or a hub id")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UnsupportedModelError(
            f"{name!r} is neither a file or folder nor a model on the hub ({_reason(error)})"
        ) from None


def read_config_rope(path: Path) -> ModelRope:
    """The RoPE that a config.json describes, whatever lies beside it.

    Raises:
        UnsupportedModelError: if it is no config, or its RoPE is not understood.
        FactorsError: if its lists do not fit its widths.
    """
    return _rope(_settings(path), path)


def import_config(path: Path, source: str, target_length: int | None = None) -> Imported:
    """Factors from a config.json: a schedule of two windows from two lists, else one set of factors.

    Args:
        path: the file.
        source: what the user calls it.
        target_length: the length for which rope type "dynamic" is to be taken; no other type has a choice.

    Raises:
        UnsupportedModelError: if it is no config, its RoPE is not understood, or nothing is scaled in it.
        FactorsError: if its lists do not fit its widths.
        SettingsError: if ``target_length`` is missing, or given where the config decides.
    """
    settings = _settings(path)
    parameters = _parameters(settings)
    rope = _rope(settings, path)
    form = f"config of rope type {parameters.get('rope_type')}"
    notes = list(_choices(settings, parameters, rope))
    if (path.parent / SCHEDULE_FILE).exists():
        notes.append(f"{SCHEDULE_FILE} beside the config was not read; it holds the whole schedule already")
    if isinstance(rope.policy, DynamicNTK):
        window = format_length(rope.window)
        if target_length is None or target_length <= rope.window:
            raise SettingsError(
                f'{source}: rope type "dynamic" has other factors at every length above {window}; '
                "choose one by --target-length"
            )
        notes.append(
            f"these are the factors at {format_length(target_length)} tokens alone; "
            "the config gives other lengths others"
        )
        return finish(rope.policy.factors_for(target_length), path, source, form, tuple(notes))
    if target_length is not None:
        raise SettingsError(
            f"{source}: the config says the target length, {format_length(rope.window)}; leave out --target-length"
        )
    policy = rope.policy
    if not isinstance(policy, FactorSchedule):
        if not rope.is_scaled:
            raise UnsupportedModelError(f"{source}: the config has plain RoPE, so there are no factors to import")
        return finish(rope.present, path, source, form, tuple(notes))
    scales = _mscales(parameters)
    if scales is not None:
        policy = FactorSchedule(
            tuple(
                replace(window, factors=window.factors.replace(attention_factor=scale))
                for window, scale in zip(policy.windows, scales, strict=False)
            )
        )
    return finish(policy, path, source, form, tuple(notes))


def _settings(path: Path) -> dict[str, Any]:
    """The content of a config.json, its RoPE spelled as transformers 5 wants it."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnsupportedModelError(f"config {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise UnsupportedModelError(f"config {path} is not valid JSON: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise UnsupportedModelError(f"{path} is no Hugging Face config: it has no model_type")
    parameters = _parameters(settings)
    kind = parameters.get("rope_type", parameters.get("type"))
    if kind in _OLD_NAMES and "long_factor" in parameters:
        kind = "longrope"
    if kind is not None:
        parameters["rope_type"] = kind
        parameters.pop("type", None)
    if kind == "longrope":
        _complete(settings, parameters, path)
    return settings


def _complete(settings: dict[str, Any], parameters: dict[str, Any], path: Path) -> None:
    """Write down the original length where every reader looks, and the ratio that follows from it."""
    name = "original_max_position_embeddings"
    original = _length(settings.get(name) or parameters.get(name), name, path)
    longest = _length(settings.get("max_position_embeddings"), "max_position_embeddings", path)
    settings[name] = parameters[name] = original
    if parameters.get("factor") is None:
        parameters["factor"] = longest / original


def _length(value: Any, name: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedModelError(f"{path}: {name} is {value!r}; rope type longrope needs a length in tokens")
    return value


def _parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that says how RoPE is scaled; transformers reads the old place first."""
    parameters: Any = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise UnsupportedModelError(f"the RoPE of the config is {parameters!r}; expected an object")
    nested = parameters.get(GLOBAL_LAYERS)
    return nested if isinstance(nested, dict) else parameters


def _rope(settings: dict[str, Any], path: Path) -> ModelRope:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    model_type = settings["model_type"]
    known = model_type in ARCHITECTURES
    if not known and _parameters(settings).get("rope_type") == "longrope":
        # The lists tell what the model rotates, so that its widths and its base are enough.
        if "rope_theta" not in {**settings, **_parameters(settings)}:
            raise UnsupportedModelError(f"{path}: model type {model_type!r} is not known here and names no rope_theta")
        settings = {name: settings[name] for name in _NUMBERS if name in settings}
        model_type = "llama"
    others = copy.deepcopy({name: settings[name] for name in settings if name not in ("model_type", _VERSION)})
    for name in _MSCALES:  # transformers has no place for them
        _parameters(others).pop(name, None)
    try:
        config = AutoConfig.for_model(model_type, **others)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise UnsupportedModelError(f"{path} cannot be used: {_reason(error)}") from None
    try:
        return read_rope(config)
    except FactorsError as error:
        raise FactorsError(f"{path}: {error}") from None
    except InvalidInputError:
        raise
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise UnsupportedModelError(f"{path} cannot be used: {_reason(error)}") from None


def _choices(settings: Mapping[str, Any], parameters: Mapping[str, Any], rope: ModelRope) -> list[str]:
    """What was decided where a config can be read in two ways."""
    notes: list[str] = []
    model_type = settings["model_type"]
    original, kind = "original_max_position_embeddings", parameters.get("rope_type")
    if kind == "linear" and not (settings.get(original) or parameters.get(original)):
        longest = format_length(rope.window)
        notes.append(
            f"the config names no original length; {format_length(rope.original_length)} is its "
            f"max_position_embeddings, {longest}, over its factor. If {longest} is the length before scaling, add "
            f"{original} to a copy of the config and import that"
        )
    if kind != "longrope":
        return notes
    known = model_type in ARCHITECTURES
    if not known:
        notes.append(f"model type {model_type!r} is not known here; its RoPE was read from its numbers alone")
    scales, present = _mscales(parameters), rope.present.attention_factor
    if scales is not None:
        differs = known and scales != (present, present)
        notes.append(
            f"attention factors {scales[0]:.6g} and {scales[1]:.6g} are the config's short_mscale and long_mscale"
            + (f"; plain transformers applies {present:.6g} to both lists" if differs else "")
        )
    ratio = settings["max_position_embeddings"] / settings["original_max_position_embeddings"]
    factor = float(parameters["factor"])
    if scales is None and parameters.get("attention_factor") is None and not math.isclose(factor, ratio):
        notes.append(
            f"the attention factor follows from factor {factor:g}, as in transformers 5; the lengths have the ratio "
            f"{ratio:g}, which transformers 4 takes"
        )
    return notes


def _mscales(parameters: Mapping[str, Any]) -> tuple[float, float] | None:
    """The attention factors of the short and the long list, where a config has one for each (Phi-3.5-MoE)."""
    short, long = (parameters.get(name) for name in _MSCALES)
    if not isinstance(short, (int, float)) or not isinstance(long, (int, float)):
        return None
    return float(short), float(long)


def _reason(error: Exception) -> str:
    """A message from elsewhere on one line, as ours are."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
