"""Candidate: what a search scores. A plain value that a journal gives back exactly as it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longrope.rope.factors import RopeFactors


@dataclass(frozen=True)
class Candidate:
    """Factors under trial: lambdas (absolute over plain rope_theta), n_hat and attention factor.

    The search space quantises what it proposes (lambda to 0.01 by default); baselines are scored as they are.
    """

    lambdas: tuple[float, ...]
    n_hat: int
    attention_factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambdas", tuple(float(value) for value in self.lambdas))
        object.__setattr__(self, "n_hat", 0 if self.n_hat == 1 else int(self.n_hat))
        object.__setattr__(self, "attention_factor", float(self.attention_factor))

    @property
    def key(self) -> str:
        """A short stable name of this candidate, equal for equal candidates."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return {"lambdas": list(self.lambdas), "n_hat": self.n_hat, "attention_factor": self.attention_factor}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        return cls(tuple(data["lambdas"]), data["n_hat"], data["attention_factor"])

    @classmethod
    def from_factors(cls, factors: RopeFactors) -> Candidate:
        return cls(factors.lambdas, factors.n_hat, factors.attention_factor)

    def to_factors(self, template: RopeFactors, target_length: int) -> RopeFactors:
        """These values as factors of the model that ``template`` belongs to."""
        return RopeFactors(
            self.lambdas,
            template.rope_theta,
            template.rotary_dim,
            template.original_length,
            target_length,
            self.n_hat,
            self.attention_factor,
        )
