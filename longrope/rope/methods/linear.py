"""Position Interpolation (PI): every pair is slowed down alike. arXiv 2306.15595, section 2.2."""

from __future__ import annotations

from longrope.rope.factors import RopeFactors
from longrope.rope.methods.composition import compose, remaining_ratio


def linear(present: RopeFactors, target_length: int) -> RopeFactors:
    """Present factors times the remaining ratio; transformers' rope_type "linear" for identity factors.

    Raises:
        FactorsError: if the target is shorter than the present window.
    """
    return compose(present, remaining_ratio(present, target_length), target_length, "linear")
