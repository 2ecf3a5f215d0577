"""Llama 3.1's scaling: like YaRN, with a ramp that is linear in the rotations within the window.

Source: the model's released code (transformers' rope_type "llama3"); arXiv 2407.21783 names it without the formula.
"""

from __future__ import annotations

import math

import numpy as np

from longrope.exceptions import SettingsError
from longrope.rope.factors import RopeFactors
from longrope.rope.methods.composition import compose, remaining_ratio


def llama3(
    present: RopeFactors,
    target_length: int,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> RopeFactors:
    """Present factors under Llama 3.1's scaling; transformers' rope_type "llama3" for identity factors.

    Args:
        present: the factors of the model as it is.
        target_length: tokens the result is meant for; the remaining ratio is transformers' ``factor``.
        low_freq_factor: pairs with fewer rotations within the present window are interpolated in full.
        high_freq_factor: pairs with more rotations within the present window are left alone.

    Raises:
        FactorsError: if the target is shorter than the present window.
        SettingsError: if high_freq_factor is not above low_freq_factor.
    """
    if not 0 <= low_freq_factor < high_freq_factor < math.inf:
        raise SettingsError(
            f"low_freq_factor is {low_freq_factor} and high_freq_factor {high_freq_factor}; "
            "the second must be the greater, and neither below 0"
        )
    ratio = remaining_ratio(present, target_length)
    rotations = present.target_length * present.inv_freq() / (2 * math.pi)  # (d/2,)
    kept = np.clip((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return compose(present, 1 / ((1 - kept) / ratio + kept), target_length, "llama3")
