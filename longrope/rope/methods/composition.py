"""Composition: what every scaling method does with the factors a model already has.

A method says by how much each pair is slowed down on the way from the present window to the target. The result is
absolute over plain rope_theta again, because frequencies are divided one after the other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longrope.exceptions import FactorsError
from longrope.lengths import format_length
from longrope.rope.factors import RopeFactors


def remaining_ratio(present: RopeFactors, target_length: int) -> float:
    """How much longer the target is than the present window; target over original length for identity factors.

    Raises:
        FactorsError: if the target is shorter than the present window.
    """
    ratio = target_length / present.target_length
    if ratio < 1:
        raise FactorsError(
            f"target length {format_length(target_length)} is below the present window of "
            f"{format_length(present.target_length)}; scaling methods only extend, give at least that"
        )
    return ratio


def compose(
    present: RopeFactors,
    slowdown: float | npt.NDArray[np.float64],
    target_length: int,
    method: str,
    attention_factor: float | None = None,
) -> RopeFactors:
    """The present factors with each pair slowed down further.

    Args:
        present: the factors of the model as it is; their n_hat is kept.
        slowdown: multiplies the lambdas, a scalar or (rotary_dim / 2,).
        target_length: tokens the result is meant for.
        method: name of the scaling method, for the provenance.
        attention_factor: that of the result; the present one when not given.
    """
    return present.replace(
        lambdas=tuple((np.asarray(present.lambdas) * slowdown).tolist()),
        target_length=target_length,
        attention_factor=present.attention_factor if attention_factor is None else attention_factor,
        provenance={"method": method},
    )
