"""The critical dimension: where pairs are too slow to have been trained through whole periods.

LongRoPE2, arXiv 2502.20082, section 3.1. The paper counts dimensions (``d_tcd``, two a pair) in its formula and pairs
in its figures; everything here is an index of pairs, starting at 0.
"""

from __future__ import annotations

import math

from longrope.exceptions import SettingsError


def critical_pair(rope_theta: float, rotary_dim: int, train_length: int, periods: float = 1.0) -> int:
    """The first pair that makes fewer than ``periods`` turns within the trained length.

    ``ceil((d / 2) log_theta(L / (2 pi periods)))``, that is ``d_tcd / 2`` for one period (Phi3-mini 31, LLaMA2 46,
    LLaMA3-8B 35). The search of LongRoPE2 looks for the real critical pair from the one at ten periods up to it.

    Args:
        rope_theta: base of the pretrained model, above 1.
        rotary_dim: rotated dimensions of a head.
        train_length: tokens the model was pretrained on.
        periods: whole turns that count as trained.

    Returns:
        A pair index from 0 (none turns that often) to rotary_dim / 2 (all do).

    Raises:
        SettingsError: if ``periods`` is not above 0.
    """
    if not 0 < periods < math.inf:
        raise SettingsError(f"periods is {periods}; it must be above 0")
    pair = math.ceil(rotary_dim / 2 * math.log(train_length / (2 * math.pi * periods), rope_theta))
    return min(max(pair, 0), rotary_dim // 2)
