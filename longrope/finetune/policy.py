"""From a factor file to the policy of the extended model, checked against the model before anything starts."""

from __future__ import annotations

from dataclasses import replace

from longrope.exceptions import SettingsError
from longrope.finetune.settings import OWN, SHARED, FinetuneSettings
from longrope.lengths import format_length
from longrope.model.rope_config import ModelRope
from longrope.rope.methods import yarn
from longrope.rope.policy import FactorSchedule, load_factors


def training_policy(rope: ModelRope, settings: FinetuneSettings) -> FactorSchedule:
    """The windows of the extended model.

    Args:
        rope: of the model as it is; its windows are kept below a file that has one window only.

    Raises:
        FactorsError: if the file cannot be used or does not fit the model.
        SettingsError: if no window holds a segment.
    """
    given = load_factors(settings.factors)
    schedule = given if isinstance(given, FactorSchedule) else rope.extended_by(given)
    schedule.reference.check_fits(rope.rope_theta, rope.rotary_dim)
    longest = schedule.windows[-1].max_length
    if settings.seq_length > longest:
        raise SettingsError(
            f"seq-length {format_length(settings.seq_length)} is over the {format_length(longest)} that "
            f"{settings.factors} is meant for; train shorter segments, or search factors for a longer target"
        )
    if settings.attention_factor == OWN:
        return schedule
    if settings.attention_factor == SHARED:
        chosen = schedule.factors_for(settings.seq_length).attention_factor
    else:
        chosen = float(settings.attention_factor)
    windows = [replace(each, factors=each.factors.replace(attention_factor=chosen)) for each in schedule.windows]
    return FactorSchedule(tuple(windows))


def with_windows_ahead(policy: FactorSchedule, settings: FinetuneSettings) -> FactorSchedule:
    """The windows that are trained: those of the extended model, and those that ``settings.windows`` looks ahead to.

    These have YaRN's factors over the longest of the model's. Trained on segments much shorter than they are, they
    teach the model slower rotations before factors are searched for that length (YaRN itself trains 64k segments for
    a window of 128k; arXiv 2309.00071, section 4.1).
    """
    longest = policy.windows[-1]
    trained = policy
    for window in settings.windows:
        if window > longest.max_length:
            ahead = yarn(longest.factors, window)
            if settings.attention_factor != OWN:
                ahead = ahead.replace(attention_factor=longest.factors.attention_factor)
            trained = trained.with_window(ahead)
    return trained
