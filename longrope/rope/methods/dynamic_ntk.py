"""Dynamic NTK: NTK-aware scaling by the length of each sequence. arXiv 2309.00071, section 3.3."""

from __future__ import annotations

import math
from dataclasses import dataclass

from longrope.exceptions import SettingsError
from longrope.rope.factors import RopeFactors
from longrope.rope.methods.composition import compose
from longrope.rope.methods.ntk import ntk_slowdown
from longrope.rope.policy import RopePolicy


@dataclass(frozen=True)
class DynamicNTK(RopePolicy):
    """Present factors inside the present window; above it NTK with a ratio that grows with the sequence.

    For a sequence of ``n`` tokens and a present window of ``L`` the ratio is ``factor * n / L - (factor - 1)``, as in
    transformers' rope_type "dynamic"; the paper's Dynamic NTK is factor 1.

    Raises:
        SettingsError: if ``factor`` is below 1 or not finite.
    """

    present: RopeFactors
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise SettingsError(f"dynamic NTK factor is {self.factor}; it must be at least 1")

    def factors_for(self, length: int) -> RopeFactors:
        if length <= self.present.target_length:
            return self.present
        alpha = self.factor * length / self.present.target_length - (self.factor - 1)
        return compose(self.present, ntk_slowdown(self.present.rotary_dim, alpha), length, "dynamic_ntk")

    @property
    def reference(self) -> RopeFactors:
        return self.present
