"""NTK-aware scaling: a higher base, so that fast pairs hardly change and the slowest is interpolated in full.

arXiv 2309.00071, section 3.1 (the method was first published by bloc97 on Reddit, 2023).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longrope.rope.factors import RopeFactors
from longrope.rope.methods.composition import compose, remaining_ratio


def ntk(present: RopeFactors, target_length: int) -> RopeFactors:
    """Present factors under the base ``theta * r ** (d / (d - 2))`` for the remaining ratio ``r``.

    Raises:
        FactorsError: if the target is shorter than the present window.
    """
    return compose(
        present, ntk_slowdown(present.rotary_dim, remaining_ratio(present, target_length)), target_length, "ntk"
    )


def ntk_slowdown(rotary_dim: int, alpha: float) -> npt.NDArray[np.float64]:
    """``alpha ** (2 i / (d - 2))``: 1 for the first pair, ``alpha`` for the last, (rotary_dim / 2,).

    The same as the base ``theta * alpha ** (d / (d - 2))``. A single pair, for which that base has no value, is taken
    as the last one, since it has to stay inside the trained angles.
    """
    if rotary_dim == 2:
        return np.array([alpha])
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / (rotary_dim - 2)
    return np.asarray(alpha**exponents, dtype=np.float64)
