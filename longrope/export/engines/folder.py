"""A model folder as the engines read it, and the schedule that it was measured with."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.exceptions import FactorsError, UnsupportedModelError
from longrope.export.engines.service import Applied
from longrope.model.load import ModelSource
from longrope.model.rope_config import SCHEDULE_FILE, ModelRope, read_rope
from longrope.rope import attention_factor
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule

FROM_CONFIG = "config.json as transformers reads it"
MSCALES_SET_IT = "; short_mscale and long_mscale in its rope_parameters are what counts here"
_MSCALES = ("short_mscale", "long_mscale")
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Folder:
    """A Hugging Face folder.

    Attributes:
        path: the folder.
        settings: config.json as it is written.
        config: the same as transformers understands it.
        rope: its RoPE as we understand it.
        schedule: the factors that were measured.
        reference: where the schedule comes from.
    """

    path: Path
    settings: dict[str, Any]
    config: Any
    rope: ModelRope
    schedule: FactorSchedule
    reference: str

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @property
    def parameters(self) -> dict[str, Any]:
        """The rope parameters of the layers that are rescaled, as transformers 5 holds them."""
        return self.rope.architecture.rope_parameters_of(self.config)

    @property
    def kind(self) -> str:
        """The rope type."""
        return str(self.parameters.get("rope_type", "default"))

    @property
    def original(self) -> int:
        """Tokens up to which the short list holds, where transformers reads them."""
        nested = self.rope.architecture.local_layers == "own"
        top = None if nested else getattr(self.config, _ORIGINAL, None)
        return int(top or self.parameters.get(_ORIGINAL) or self.longest)

    @property
    def longest(self) -> int:
        """``max_position_embeddings``."""
        return int(self.config.max_position_embeddings)

    def read_list(self, name: str) -> tuple[float, ...]:
        """The "short" or the "long" list."""
        return tuple(float(value) for value in self.parameters[f"{name}_factor"])

    def su(self, original: int | None = None) -> float:
        """The attention factor that follows from the lengths, which engines use where none is named."""
        original = original or self.original
        return attention_factor.su(self.longest / original, original)

    def mscales(self) -> tuple[float, float]:
        """The attention factors of both lists where an engine has two: short_mscale and long_mscale, else su."""
        short, long = (float(self.parameters.get(name, self.su())) for name in _MSCALES)
        return short, long

    def other_attention_factors(self, *used: float | None, remedy: str = "") -> tuple[str, ...]:
        """A line about the ``attention_factor`` of the config where an engine uses another."""
        named = self.parameters.get("attention_factor")
        if named is None or all(each is not None and math.isclose(named, each, rel_tol=1e-5) for each in used):
            return ()
        return (f"attention_factor {named:.6g} of the config{remedy}",)

    def why_not(self, engine: str, known: tuple[str, ...], interleaved: tuple[str, ...] = ()) -> str | None:
        """Why an engine does not apply the factors at all, or None.

        Args:
            engine: its name.
            known: model types whose code hands rope type longrope on.
            interleaved: model types that the engine refuses because the two parts of a pair lie side by side.
        """
        if self.kind != "longrope":
            return f"the config has rope type {self.kind!r}, so that {engine} gets no factors"
        if self.model_type in interleaved:
            return f"{engine} raises an error for rope type longrope in {self.model_type!r}: its pairs are interleaved"
        if self.model_type not in known:
            return f"{engine} is not known to apply rope type longrope to model type {self.model_type!r}"
        return None

    def both_lists(self, scales: tuple[float, float]) -> tuple[Applied, Applied]:
        """What the short and the long list do with an attention factor each."""
        short, long = (
            Applied(name, self.read_list(name), scale) for name, scale in zip(("short", "long"), scales, strict=True)
        )
        return short, long


def read_folder(path: Path, measured: RopeFactors | FactorSchedule | None = None) -> Folder:
    """Read a folder for the engines.

    Args:
        path: a Hugging Face folder.
        measured: the schedule to compare with, or factors of one window, which stand on top of the folder's own
            windows; the schedule of ``longrope.json`` where not given, and where there is none what transformers
            makes of the config.

    Raises:
        UnsupportedModelError: if there is no such folder, no usable config, or nothing is rescaled.
        FactorsError: if ``longrope.json`` or the lists of the config cannot be used.
    """
    if not path.is_dir():
        raise UnsupportedModelError(f"model folder {path} does not exist; give a folder that longrope apply wrote")
    config = ModelSource(str(path)).load_config()
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    rope = read_rope(config, path)
    parameters = rope.architecture.rope_parameters_of(config)
    kind = parameters.get("rope_type", "default")
    reference = SCHEDULE_FILE
    if measured is not None:
        given = measured if isinstance(measured, RopeFactors) else measured.reference
        given.check_fits(rope.rope_theta, rope.rotary_dim)
        schedule = rope.extended_by(measured) if isinstance(measured, RopeFactors) else measured
        reference = "the factors given"
    elif (path / SCHEDULE_FILE).exists():
        schedule = rope.schedule()
    elif kind == "longrope":
        schedule, reference = rope.schedule(), FROM_CONFIG
    else:
        raise UnsupportedModelError(
            f"{path} has no {SCHEDULE_FILE} and its config has rope type {kind!r}, so there are no factors to check"
        )
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            values = parameters.get(name)
            if not isinstance(values, list) or len(values) != rope.rotary_dim // 2:
                raise FactorsError(
                    f"{name} in {path}/config.json does not hold {rope.rotary_dim // 2} numbers, one for each "
                    "rotated pair; export the folder again"
                )
    return Folder(path, settings, config, rope, schedule, reference)
