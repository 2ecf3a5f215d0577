"""Ask one engine what it computes with a model, and compare with what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longrope.exceptions import FactorsError, SettingsError
from longrope.export.engines import exllama, huggingface, llama_cpp, mlx, sglang, vllm
from longrope.export.engines.folder import Folder, read_folder
from longrope.export.engines.service import Report, Service, compare, longest_asked
from longrope.export.gguf import check_fits
from longrope.export.gguf_file import GGUFFile
from longrope.model.rope_config import SCHEDULE_FILE
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window, load_factors


@dataclass(frozen=True)
class Engine:
    """One row of the table of engines."""

    version: Callable[[], str]
    serve: Callable[[Folder, int], Service]


ENGINES = {
    "hf": Engine(huggingface.version, huggingface.serve),
    "vllm": Engine(lambda: vllm.VERSION, vllm.serve),
    "sglang": Engine(lambda: sglang.VERSION, sglang.serve),
    "llama.cpp": Engine(lambda: llama_cpp.VERSION, llama_cpp.serve),
    "exllama": Engine(lambda: exllama.VERSION, exllama.serve),
    "mlx": Engine(lambda: mlx.VERSION, mlx.serve),
}


def check(model: str | Path, engine: str, max_length: int | None = None, factors: str | Path | None = None) -> Report:
    """What an engine computes with a folder, or llama.cpp with a GGUF file, at every length.

    Args:
        model: a folder, or a .gguf file.
        engine: a name in ENGINES.
        max_length: tokens of the longest sequence to serve; the whole window where not given. Engines that choose a
            list when they are started choose by it.
        factors: a file with the factors that were measured; ``longrope.json`` beside the model where not given, and
            where there is none what transformers makes of the config.

    Raises:
        SettingsError: if the engine is unknown, or cannot read such a model, or ``max_length`` is too long.
        UnsupportedModelError: if the model cannot be read.
        FactorsError: if the factors cannot be read, or belong to another model.
    """
    path = Path(model)
    if engine not in ENGINES:
        raise SettingsError(f"engine {engine!r} is not known; give {', '.join(ENGINES)}")
    row = ENGINES[engine]
    measured = None if factors is None else load_factors(factors)
    if path.suffix == ".gguf":
        if engine != "llama.cpp":
            raise SettingsError(f"{path} is a GGUF file, which engine {engine!r} is not checked with; use llama.cpp")
        file = GGUFFile(path)
        beside, reference = path.parent / SCHEDULE_FILE, "the factors given"
        if measured is None and beside.exists():
            measured, reference = load_factors(beside), SCHEDULE_FILE
        if measured is None:
            raise FactorsError(f"{path} does not say what was measured; add --factors FILE, for example longrope.json")
        schedule = measured if isinstance(measured, FactorSchedule) else _on_plain(measured)
        check_fits(file, schedule.reference)
        service = llama_cpp.serve_file(file, longest_asked(schedule, max_length))
    else:
        folder = read_folder(path, measured)
        schedule, reference = folder.schedule, folder.reference
        service = row.serve(folder, longest_asked(schedule, max_length))
    return compare(str(path), row.version(), reference, schedule, service)


def _on_plain(factors: RopeFactors) -> FactorSchedule:
    """Factors of one window on top of plain RoPE."""
    plain = RopeFactors.identity(factors.rope_theta, factors.rotary_dim, factors.original_length)
    return FactorSchedule((Window(plain.target_length, plain),)).with_window(factors)
