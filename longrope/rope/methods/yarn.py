"""YaRN: fast pairs stay, slow pairs are interpolated, with a linear ramp between. arXiv 2309.00071, section 3.2."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from longrope.exceptions import SettingsError
from longrope.rope import attention_factor as published
from longrope.rope.factors import RopeFactors
from longrope.rope.methods.composition import compose, remaining_ratio


def yarn(
    present: RopeFactors,
    target_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
) -> RopeFactors:
    """Present factors under YaRN for the remaining ratio; transformers' rope_type "yarn" for identity factors.

    Args:
        present: the factors of the model as it is.
        target_length: tokens the result is meant for.
        beta_fast: pairs with more rotations within the present window are left alone.
        beta_slow: pairs with fewer rotations within the present window are interpolated in full.
        truncate: whether the ends of the ramp are moved out to whole pairs.
        attention_factor: that of the result; ``0.1 ln s + 1`` when not given, with ``s`` the whole ratio of target
            to original length, since the entropy that it corrects grew over every extension.

    Raises:
        FactorsError: if the target is shorter than the present window.
        SettingsError: if the betas are not positive, or beta_fast is below beta_slow.
    """
    if not 0 < beta_slow <= beta_fast < math.inf:
        raise SettingsError(f"beta_fast is {beta_fast} and beta_slow {beta_slow}; needs 0 < beta_slow <= beta_fast")
    ratio = remaining_ratio(present, target_length)
    low, high = _fractional_pair(present, beta_fast), _fractional_pair(present, beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    # The bounds transformers clamps to: the upper one counts dimensions, not pairs.
    ramp = _ramp(max(low, 0), min(high, present.rotary_dim - 1), present.rotary_dim // 2)
    if attention_factor is None:
        attention_factor = published.yarn(target_length / present.original_length)
    return compose(present, 1 / (1 - ramp + ramp / ratio), target_length, "yarn", attention_factor)


def _fractional_pair(present: RopeFactors, rotations: float) -> float:
    """The pair index at which the present frequencies make this many rotations within the present window.

    Between pairs the logarithm of the rotations is interpolated, which is exact for plain frequencies; outside them
    it goes on with the slope of plain RoPE. Where factors that are not monotone cross more than once, the first
    crossing counts.
    """
    excess: npt.NDArray[np.float64] = np.log(present.target_length * present.inv_freq() / (2 * math.pi * rotations))
    plain_slope = 2 * math.log(present.rope_theta) / present.rotary_dim
    below = np.flatnonzero(excess <= 0)
    if below.size == 0:
        return float(len(excess) - 1 + excess[-1] / plain_slope)
    after = int(below[0])
    if after == 0:
        return float(excess[0] / plain_slope)
    return float(after - 1 + excess[after - 1] / (excess[after - 1] - excess[after]))


def _ramp(low: float, high: float, pairs: int) -> npt.NDArray[np.float64]:
    """0 up to pair ``low``, 1 from pair ``high``, linear between, (pairs,)."""
    width = high - low or 0.001  # a step, as in transformers
    return np.clip((np.arange(pairs, dtype=np.float64) - low) / width, 0.0, 1.0)
