"""From a factor file to the policy of the extended model, checked against the model before anything starts."""

from __future__ import annotations

from pathlib import Path

from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.model.rope_config import ModelRope
from longrope.rope.policy import FactorSchedule, load_factors


def training_policy(rope: ModelRope, factors: str | Path, seq_length: int) -> FactorSchedule:
    """The windows of the extended model; training happens in the one that holds ``seq_length``.

    Args:
        rope: of the model as it is; its windows are kept below a file that has one window only.
        factors: a factor or schedule file.

    Raises:
        FactorsError: if the file cannot be used or does not fit the model.
        SettingsError: if no window holds ``seq_length``.
    """
    given = load_factors(factors)
    schedule = given if isinstance(given, FactorSchedule) else rope.extended_by(given)
    schedule.reference.check_fits(rope.rope_theta, rope.rotary_dim)
    longest = schedule.windows[-1].max_length
    if seq_length > longest:
        raise SettingsError(
            f"seq-length {format_length(seq_length)} is over the {format_length(longest)} that {factors} is meant for; "
            "train shorter segments, or search factors for a longer target"
        )
    return schedule
