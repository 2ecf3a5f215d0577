"""How far a ratio of sums over documents would differ with other documents: the bootstrap (Efron, 1979).

Tokens of one document depend on each other, so documents are drawn anew, not tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """The spread of an estimate.

    Attributes:
        error: its standard error.
        low: lower end of the percentile interval.
        high: its upper end.
    """

    error: float
    low: float
    high: float


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    transform: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] = np.asarray,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The spread of ``transform(sum(numerators) / sum(denominators))`` over documents.

    Args:
        numerators: of each document (N,), such as its NLL.
        denominators: of each document (N,), such as its tokens.
        transform: of an array of ratios, such as ``numpy.exp``.
        confidence: share of the resamples inside of the interval.

    Returns:
        nan throughout for fewer than two documents.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    assert above.shape == below.shape
    count = len(above)
    if count < 2:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), size=resamples)  # (R, N) how often each was drawn
    values = transform((times @ above) / (times @ below))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.std(values, ddof=1)), float(low), float(high))
