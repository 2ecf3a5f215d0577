"""From a factor file to the policy of the extended model, checked against the model before anything starts."""

from __future__ import annotations

from longrope.exceptions import SettingsError
from longrope.finetune.settings import OWN, SHARED, FinetuneSettings
from longrope.lengths import format_length
from longrope.model.rope_config import ModelRope
from longrope.rope.attention_factor import su
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
    return _with_attention_factors(schedule, settings)


def with_windows_ahead(policy: FactorSchedule, settings: FinetuneSettings) -> FactorSchedule:
    """The windows that are trained: those of the extended model, and those that ``settings.windows`` looks ahead to.

    These have YaRN's factors over those of the original length, in one step: the same in every stage that looks ahead
    to a window, and a start of the search for it. Trained on segments much shorter than they are, they teach the model
    slower rotations before factors are searched for that length (YaRN itself trains 64k segments for a window of 128k;
    arXiv 2309.00071, section 4.1). Their attention factor is that of the segments: a larger one keeps attention sharp
    over more tokens, and those are not there yet.
    """
    longest = policy.windows[-1]
    trained, original = policy, policy.factors_for(longest.factors.original_length)
    for window in settings.windows:
        if window > longest.max_length:
            ahead = yarn(original, window, attention_factor=longest.factors.attention_factor)
            trained = trained.with_window(ahead)
    return trained


def _with_attention_factors(schedule: FactorSchedule, settings: FinetuneSettings) -> FactorSchedule:
    chosen, changed = settings.attention_factor, schedule.windows
    if chosen == OWN:
        return schedule
    if chosen == SHARED:
        last, longest = schedule.windows[-1], max(settings.trained_windows)
        if longest > last.max_length:
            chosen = su(longest / last.factors.original_length, last.factors.original_length)
        else:
            chosen = schedule.factors_for(longest).attention_factor
        changed = tuple(each for each in changed if each.max_length < settings.seq_length)
    for each in changed:
        schedule = schedule.with_window(each.factors.replace(attention_factor=float(chosen)), each.max_length)
    return schedule
