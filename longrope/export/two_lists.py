"""A schedule reduced to what engines have: two lists of factors, divided at the pretraining length, and no n_hat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from longrope.exceptions import FactorsError, SettingsError
from longrope.export.n_hat import without_n_hat
from longrope.lengths import format_length
from longrope.model.architectures import Architecture
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

FAVOURED = ("long", "short")
_DROPS_CACHE = "phi3"
"""The model type of the table whose cache plain transformers computes anew where the lists change."""


@dataclass(frozen=True)
class TwoLists:
    """Two windows whose factors have n_hat 0.

    Engines change from one to the other at the pretraining length, whichever window the short list was made for.

    Attributes:
        short: its factors serve sequences of up to the pretraining length.
        long: its factors serve longer sequences.
        favoured: ``long`` or ``short``: whose attention factor is the one of both lists.
    """

    short: Window
    long: Window
    favoured: str = "long"

    @property
    def original_length(self) -> int:
        """Tokens the model was pretrained on, where the lists change."""
        return self.long.factors.original_length

    @property
    def ratio(self) -> float:
        """The longest window over the pretraining length."""
        return self.long.max_length / self.original_length

    @property
    def attention_factor(self) -> float:
        """The one attention factor that plain transformers has for both lists."""
        return (self.short if self.favoured == "short" else self.long).factors.attention_factor


def two_lists(
    schedule: FactorSchedule, short_window: int | None = None, single_list: bool = False, favoured: str = "long"
) -> TwoLists:
    """Choose the windows of a schedule that become the two lists.

    The long list is the longest window. The short one is the largest window not above the pretraining length, or
    where all are above it, what the schedule gives the pretraining length. Factors with n_hat > 0 are replaced by the
    best candidate with n_hat = 0 of the same search, or by their own lambdas where the file names none.

    Args:
        short_window: length of the window to take as the short list instead.
        single_list: take the long list for both, for engines that keep their cache where the lists change.
        favoured: ``long`` or ``short``: whose attention factor serves both lists.

    Raises:
        SettingsError: if the schedule has no such window, or both options are given.
    """
    if favoured not in FAVOURED:
        raise SettingsError(f"attention factor {favoured!r} is unknown; give that of the {' or '.join(FAVOURED)} list")
    windows = [Window(window.max_length, _flat(window.factors)) for window in schedule.windows]
    long = windows[-1]
    if single_list:
        if short_window is not None:
            raise SettingsError("--short-window and --single-list contradict each other; give one of them")
        return TwoLists(long, long)
    if short_window is None:
        below = [window for window in windows if window.max_length <= long.factors.original_length]
        return TwoLists(below[-1] if below else windows[0], long, favoured)
    for window in windows:
        if window.max_length == short_window:
            return TwoLists(window, long, favoured)
    raise SettingsError(
        f"short window {format_length(short_window)} is not a window of the schedule; it has {schedule.describe()}"
    )


def losses(schedule: FactorSchedule, lists: TwoLists, architecture: Architecture) -> tuple[str, ...]:
    """What plain transformers will do differently from the schedule, a line each."""
    return (*_lengths(schedule, lists), *_layers_and_cache(lists, architecture))


def _flat(factors: RopeFactors) -> RopeFactors:
    try:
        return without_n_hat(factors, replace=True)
    except FactorsError:  # the file names no candidate with n_hat = 0
        return factors.replace(n_hat=0)


def _lengths(schedule: FactorSchedule, lists: TwoLists) -> Iterator[str]:
    """Which lengths get other factors."""
    original = lists.original_length
    single = lists.short == lists.long
    reason = (
        f"both lists are those of window {format_length(lists.long.max_length)}"
        if single
        else f"plain transformers has two lists, divided at {format_length(original)}"
    )
    below = 0
    for window in schedule.windows:
        edges = sorted({below, window.max_length} | ({original} if below < original < window.max_length else set()))
        own = _flat(window.factors)
        for start, stop in pairwise(edges):
            used = lists.short if stop <= original else lists.long
            lengths = f"sequences of {start + 1} to {format_length(stop)} tokens"
            if used.factors.lambdas != own.lambdas:
                yield (
                    f"{lengths} get the factors of window {format_length(used.max_length)} instead of those of "
                    f"{format_length(window.max_length)}: {reason}"
                )
            elif window.factors.n_hat:
                instead = (
                    "the same lambdas without n_hat"
                    if own.lambdas == window.factors.lambdas
                    else "the best candidate with n_hat = 0 of the same search"
                )
                yield f"{lengths} get {instead} instead of n_hat = {window.factors.n_hat}"
            if window.factors.attention_factor != lists.attention_factor:
                yield (
                    f"{lengths} get attention factor {lists.attention_factor:.4f} instead of "
                    f"{window.factors.attention_factor:.4f}: plain transformers has one for both lists"
                )
        below = window.max_length


def _layers_and_cache(lists: TwoLists, architecture: Architecture) -> Iterator[str]:
    short, long = lists.short.factors, lists.long.factors
    plain = all(value == 1 for value in (*short.lambdas, *long.lambdas, lists.attention_factor))
    if architecture.local_layers == "shared" and not plain:
        yield (
            f"the sliding-window layers are rescaled like the others: plain transformers has one RoPE for all layers "
            f"of {architecture.model_type}"
        )
    if short.lambdas != long.lambdas and architecture.model_type != _DROPS_CACHE:
        yield (
            f"a generation that crosses {format_length(lists.original_length)} tokens goes on with keys of the short "
            f"list: plain transformers computes the cache anew for {_DROPS_CACHE} only (--single-list avoids it)"
        )
