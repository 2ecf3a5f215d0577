"""Write a model folder that plain transformers loads with our factors, in the form of its rope type ``longrope``.

Plain transformers has two lists of factors and one attention factor, and no n_hat. What does not fit is either
refused (n_hat) or said (more windows, attention factors that differ).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from longrope.exceptions import RunExistsError
from longrope.export import n_hat
from longrope.lengths import format_length
from longrope.model.architectures import architecture_for
from longrope.model.load import ModelSource
from longrope.model.rope_config import SCHEDULE_FILE, read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_REPLACED = {"config.json", SCHEDULE_FILE}
_KEPT = ("rope_theta", "partial_rotary_factor")
_FOREIGN = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


@dataclass(frozen=True)
class Exported:
    """What was written, and what plain transformers will do differently from the schedule."""

    folder: Path
    schedule: FactorSchedule
    losses: tuple[str, ...]


def export_folder(
    source: ModelSource, factors: RopeFactors | FactorSchedule, output: str | Path, without_n_hat: bool = False
) -> Exported:
    """Write ``output``: config, weights (hard-linked where possible), tokenizer, and the schedule in longrope.json.

    Args:
        source: the model the factors were made for.
        factors: of one window, which is put on top of the model's present ones, or a whole schedule.
        without_n_hat: replace factors with n_hat > 0 by the best candidate with n_hat = 0 of the same search.

    Raises:
        FactorsError: if the factors do not fit the model, or need n_hat.
        RunExistsError: if ``output`` exists and is not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunExistsError(f"output {output} exists and is not empty; choose another folder")
    folder = source.folder()
    config = source.load_config()
    rope = read_rope(config, folder)
    if isinstance(factors, RopeFactors):
        factors.check_fits(rope.rope_theta, rope.rotary_dim)
        schedule = rope.extended_by(factors)
    else:
        factors.reference.check_fits(rope.rope_theta, rope.rotary_dim)
        schedule = factors
    schedule = FactorSchedule(
        tuple(Window(each.max_length, n_hat.without_n_hat(each.factors, without_n_hat)) for each in schedule.windows)
    )
    losses = set_longrope(config, schedule)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        os.chmod(temporary, 0o755)
        config.save_pretrained(temporary)
        schedule.save(temporary / SCHEDULE_FILE)
        for path in sorted(folder.iterdir()):
            if path.name not in _REPLACED and path.is_file() and not path.name.endswith(_FOREIGN):
                _place(path, temporary / path.name, link=path.name.endswith(_WEIGHTS))
        _set_tokenizer_length(temporary / "tokenizer_config.json", schedule.windows[-1].max_length)
        if output.exists():
            output.rmdir()
        os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Exported(output, schedule, losses)


def set_longrope(config: Any, schedule: FactorSchedule) -> tuple[str, ...]:
    """Write a schedule into a transformers v5 config as rope type ``longrope``.

    The short list is what the schedule gives a sequence of the pretraining length.
    The original length goes to the top level and into the parameters, with ``factor`` its exact ratio, because
    readers differ in which they take.

    Returns:
        What plain transformers will do differently from the schedule, a line each.
    """
    long = schedule.windows[-1]
    original = long.factors.original_length
    short = schedule.window_for(original)
    config.max_position_embeddings = long.max_length
    config.original_max_position_embeddings = original
    architecture = architecture_for(config)
    present = architecture.rope_parameters_of(config)
    kept = {name: present[name] for name in _KEPT if name in present}
    parameters = {
        **kept,
        "rope_type": "longrope",
        "short_factor": list(short.factors.lambdas),
        "long_factor": list(long.factors.lambdas),
        "original_max_position_embeddings": original,
        "factor": long.max_length / original,
        "attention_factor": long.factors.attention_factor,
    }
    if present.get("rope_type") != "default" and present.get("mscale_all_dim"):
        # deepseek_v3 makes its softmax scale of these whatever the rope type; its attention was trained with it.
        parameters.update({name: present[name] for name in ("mscale", "mscale_all_dim", "factor") if name in present})
    architecture.set_rope_parameters(config, parameters)
    return tuple(_losses(schedule, short, long))


def _losses(schedule: FactorSchedule, short: Window, long: Window) -> Iterator[str]:
    """Which lengths plain transformers gives other factors than the schedule."""
    original = long.factors.original_length
    below = 0
    for window in schedule.windows:
        edges = sorted({below, window.max_length} | ({original} if below < original < window.max_length else set()))
        for start, stop in pairwise(edges):
            used = short if stop <= original else long
            lengths = f"sequences of {start + 1} to {format_length(stop)} tokens"
            if window.factors.lambdas != used.factors.lambdas:
                yield (
                    f"{lengths} get the factors of window {format_length(used.max_length)} instead of those of "
                    f"{format_length(window.max_length)}: plain transformers has two lists, divided at "
                    f"{format_length(original)}"
                )
            if window.factors.attention_factor != long.factors.attention_factor:
                yield (
                    f"{lengths} get attention factor {long.factors.attention_factor:.4f} instead of "
                    f"{window.factors.attention_factor:.4f}: plain transformers has one for both lists"
                )
        below = window.max_length


def _set_tokenizer_length(path: Path, length: int) -> None:
    """Tell the tokenizer the new window; all else about it stays as it was written."""
    if path.exists():
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["model_max_length"] = length
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _place(path: Path, target: Path, link: bool) -> None:
    """Hard-link a weight file, or copy where file systems differ; other files are copied, for they may be edited."""
    if link:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:
            pass
    shutil.copy2(path, target)
