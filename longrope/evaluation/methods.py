"""The methods that an evaluation compares, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.model.published import PUBLISHED, published_policies
from longrope.model.rope_config import ModelRope, read_rope
from longrope.rope.policy import FactorSchedule, FixedFactors, RopePolicy, load_factors

LONGROPE = "longrope"
HF = "hf"
"""What plain transformers computes from the config alone, without longrope.json, n_hat and further windows."""
LONG = "long"
"""The factors of the longest window at every length: what readjustment and windows in between are compared with."""
METHODS = (*PUBLISHED, LONGROPE, LONG, HF)


def open_methods(
    rope: ModelRope,
    lengths: tuple[int, ...],
    factors: str | Path | None,
    names: tuple[str, ...] = (),
    config: Any = None,
) -> dict[str, RopePolicy]:
    """The policy of each method, in the order of ``names``.

    Args:
        rope: of the model as it is.
        lengths: that will be measured; the published methods are made for the longest, or for the factors' target.
        factors: the file of the method ``longrope``.
        config: of the model, for the method ``hf``.
        names: the model as it is (``none``), or under ``factors`` where they are given, when empty.

    Raises:
        SettingsError: if a method is not known or lacks its factors, or a length is over what the factors are for.
        FactorsError: if the file cannot be used or does not fit the model.
    """
    names = names or ((LONGROPE,) if factors is not None else ("none",))
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"method {name!r} is not known; use {', '.join(METHODS)}")
    for name in (LONGROPE, LONG):
        if name in names and factors is None:
            raise SettingsError(f"method {name} needs factors; add --factors, or leave the method away")
    target, found = max(lengths), dict[str, RopePolicy]()
    if factors is not None:
        given = load_factors(factors)
        schedule = given if isinstance(given, FactorSchedule) else rope.extended_by(given)
        schedule.reference.check_fits(rope.rope_theta, rope.rotary_dim)
        longest = schedule.windows[-1].max_length
        if target > longest:
            raise SettingsError(
                f"length {format_length(target)} is over the {format_length(longest)} that {factors} is meant for; "
                "leave it away, or search factors for a longer target"
            )
        found[LONGROPE], found[LONG], target = schedule, FixedFactors(schedule.windows[-1].factors), longest
    if HF in names:
        assert config is not None
        found[HF] = read_rope(config).policy
    every = {**published_policies(rope, max(target, rope.window)), **found}
    return {name: every[name] for name in dict.fromkeys(names)}
