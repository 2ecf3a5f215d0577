"""Adjusted base frequency (ABF): a raised rope_theta. arXiv 2309.16039, section 4.1."""

from __future__ import annotations

import math

import numpy as np

from longrope.exceptions import SettingsError
from longrope.rope.factors import RopeFactors
from longrope.rope.methods.composition import compose, remaining_ratio


def abf(present: RopeFactors, rope_theta_new: float, target_length: int) -> RopeFactors:
    """Present factors under a raised base, written as factors over the model's own rope_theta.

    Raises:
        FactorsError: if the target is shorter than the present window.
        SettingsError: if the new base is below the model's, or not finite.
    """
    if not present.rope_theta <= rope_theta_new < math.inf:
        raise SettingsError(f"the new rope_theta is {rope_theta_new}; it must be at least {present.rope_theta:g}")
    remaining_ratio(present, target_length)
    exponents = np.arange(0, present.rotary_dim, 2, dtype=np.float64) / present.rotary_dim
    return compose(present, (rope_theta_new / present.rope_theta) ** exponents, target_length, "abf")
