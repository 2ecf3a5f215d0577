"""RopeFactors: how each rotated pair of a model is rescaled, as an immutable value with a JSON form."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.exceptions import FactorsError
from longrope.files import write_text_atomically

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RopeFactors:
    """Rescale factors for one window.

    Position ``n`` of pair ``i`` turns by ``n / (lambdas[i] * rope_theta ** (2 i / rotary_dim))``, and positions
    below ``n_hat`` by the plain ``n / rope_theta ** (2 i / rotary_dim)`` (LongRoPE, arXiv 2402.13753, section 3.2).

    Attributes:
        lambdas: one factor per rotated pair, ``rotary_dim / 2`` of them, ABSOLUTE over plain ``rope_theta``.
        rope_theta: the base the factors refer to, that of the pretrained model.
        rotary_dim: rotated dimensions of a head (less than the head's size with partial rotary).
        original_length: tokens the model was pretrained on.
        target_length: tokens these factors are meant for.
        n_hat: start tokens that keep their plain angle; 1 means the same as 0 and is stored as 0.
        attention_factor: multiplies cos and sin (transformers' term; YaRN's temperature is its inverse square).
        provenance: where the factors come from (method, model, data, seed, settings, results, versions); not
            part of equality.

    Raises:
        FactorsError: if a value is missing, not finite, out of range or of the wrong count.
    """

    lambdas: tuple[float, ...]
    rope_theta: float
    rotary_dim: int
    original_length: int
    target_length: int
    n_hat: int = 0
    attention_factor: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        lambdas = tuple(_number("lambdas", value) for value in self.lambdas)
        object.__setattr__(self, "lambdas", lambdas)
        for name in ("rotary_dim", "original_length", "target_length", "n_hat"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("rope_theta", "attention_factor"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise FactorsError(f"rotary_dim is {self.rotary_dim}; it must be even and at least 2")
        if len(lambdas) != self.rotary_dim // 2:
            raise FactorsError(
                f"{len(lambdas)} lambdas given for rotary_dim {self.rotary_dim}; it needs {self.rotary_dim // 2}"
            )
        for index, value in enumerate(lambdas):
            if value <= 0:
                raise FactorsError(f"lambda {index} is {value}; every lambda must be greater than 0")
        if self.rope_theta <= 1:
            raise FactorsError(f"rope_theta is {self.rope_theta}; it must be greater than 1")
        if self.attention_factor <= 0:
            raise FactorsError(f"attention_factor is {self.attention_factor}; it must be greater than 0")
        if self.original_length < 1 or self.target_length < 1:
            raise FactorsError(
                f"original_length is {self.original_length} and target_length {self.target_length}; "
                "both must be at least 1"
            )
        if self.n_hat < 0:
            raise FactorsError(f"n_hat is {self.n_hat}; it must be 0 or more")
        if self.n_hat == 1:  # position 0 has angle 0 under any factors
            object.__setattr__(self, "n_hat", 0)

    @classmethod
    def identity(cls, rope_theta: float, rotary_dim: int, original_length: int) -> RopeFactors:
        """Plain RoPE: every lambda is 1."""
        return cls((1.0,) * (int(rotary_dim) // 2), rope_theta, rotary_dim, original_length, original_length)

    @property
    def ratio(self) -> float:
        """The scale ``s``: target length over original length."""
        return self.target_length / self.original_length

    @property
    def is_monotone(self) -> bool:
        """Whether no lambda is below the one before it."""
        return all(a <= b for a, b in zip(self.lambdas, self.lambdas[1:], strict=False))

    def inv_freq(self) -> npt.NDArray[np.float64]:
        """Inverse frequencies in float64, (rotary_dim / 2,), in radians per position."""
        return plain_inv_freq(self.rope_theta, self.rotary_dim) / np.asarray(self.lambdas, dtype=np.float64)

    def replace(self, **changes: Any) -> RopeFactors:
        """A copy with the given fields changed."""
        return replace(self, **changes)

    def check_fits(self, rope_theta: float, rotary_dim: int) -> None:
        """Raise FactorsError unless these factors were made for a model with this base and rotary dimension."""
        if self.rotary_dim != rotary_dim:
            raise FactorsError(
                f"the factors are for rotary_dim {self.rotary_dim}, the model rotates {rotary_dim} dimensions of a "
                "head; use factors searched on this model"
            )
        if not math.isclose(self.rope_theta, rope_theta, rel_tol=1e-9):
            raise FactorsError(
                f"the factors are for rope_theta {self.rope_theta:g}, the model has {rope_theta:g}; "
                "use factors searched on this model"
            )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with ``schema_version`` and ``kind``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "factors",
            "lambdas": list(self.lambdas),
            "n_hat": self.n_hat,
            "attention_factor": self.attention_factor,
            "rope_theta": self.rope_theta,
            "rotary_dim": self.rotary_dim,
            "original_length": self.original_length,
            "target_length": self.target_length,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Any, source: str = "factors") -> RopeFactors:
        """Read the JSON form; ``source`` names it in errors. Warns where the lambdas are not monotone."""
        check_schema(data, "factors", source)
        names = {"lambdas", "n_hat", "attention_factor", "rope_theta", "rotary_dim", "original_length", "target_length"}
        missing = sorted(names - data.keys())
        if missing:
            raise FactorsError(f"{source}: key {missing[0]!r} is missing; was it written by longrope?")
        if not isinstance(data["lambdas"], Sequence) or isinstance(data["lambdas"], str):
            raise FactorsError(f"{source}: lambdas must be a list of numbers")
        provenance = data.get("provenance", {})
        if not isinstance(provenance, Mapping):
            raise FactorsError(f"{source}: provenance must be an object")
        try:
            factors = cls(provenance=provenance, **{name: data[name] for name in names})
        except FactorsError as error:
            raise FactorsError(f"{source}: {error}") from None
        if not factors.is_monotone:
            warnings.warn(f"{source}: the lambdas are not monotone", stacklevel=2)
        return factors

    def save(self, path: str | Path) -> None:
        """Write the JSON form to ``path``; a file already there is replaced whole or not at all."""
        write_text_atomically(path, json.dumps(self.to_dict(), indent=2) + "\n")


def plain_inv_freq(rope_theta: float, rotary_dim: int) -> npt.NDArray[np.float64]:
    """Inverse frequencies of plain RoPE in float64, (rotary_dim / 2,)."""
    exponents: npt.NDArray[np.float64] = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    return np.asarray(1.0 / rope_theta**exponents, dtype=np.float64)


def check_schema(data: Any, kind: str, source: str) -> None:
    """Raise FactorsError unless ``data`` is an object of this kind in a schema version we read."""
    if not isinstance(data, Mapping):
        raise FactorsError(f"{source}: expected a JSON object, found {type(data).__name__}")
    version = data.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise FactorsError(
            f"{source}: schema_version is {version!r}, this longrope reads {SCHEMA_VERSION}; "
            "use the longrope that wrote it, or a newer one"
        )
    if data.get("kind") != kind:
        raise FactorsError(f"{source}: kind is {data.get('kind')!r}, expected {kind!r}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise FactorsError(f"{name} holds {value!r}; expected a number")
    try:
        number = float(value)
    except OverflowError:  # a whole number that JSON may hold and no float can
        number = math.inf
    if not math.isfinite(number):
        raise FactorsError(f"{name} holds {number!r}; every value must be finite")
    return number


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if number != int(number):
        raise FactorsError(f"{name} is {value!r}; expected a whole number")
    return int(number)
