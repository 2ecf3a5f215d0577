"""SearchSpace: the bounds and the grid on which a search proposes factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise

from longrope.exceptions import SettingsError
from longrope.search.candidate import Candidate

PAPER_N_HAT = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
"""Choices of n_hat in LongRoPE (arXiv 2402.13753, table 4)."""

ATTENTION_STEP = 1e-4
"""Of attention factors that are searched."""

FINEST_STEP = 1e-6
"""Neighbouring lambdas closer than this are one and the same to float32 angles."""


@dataclass(frozen=True)
class SearchSpace:
    """Monotone lambdas on a grid, n_hat among choices, and the attention factor (arXiv 2402.13753, section 3.2).

    The grid points are ``lambda_min + k * lambda_step`` for ``k`` in 0..``last``; ``lambda_max`` itself is one of
    them only when it lies on the grid. Points are computed from the integer ``k``, so they are the floats nearest
    to the decimal numbers (1.07, never 1.0699999999999998) and equal ones compare equal.

    Attributes:
        pairs: number of lambdas, rotary_dim / 2.
        lambda_min: smallest lambda, absolute over plain rope_theta.
        lambda_max: bound on the largest lambda; the paper takes 1.25 times target over original length.
        lambda_step: distance of grid points.
        n_hat_choices: start-token thresholds in tokens; stored sorted and unique, with 1 as 0 (they mean the same).
        attention_factor: given to every proposed candidate, unless it is searched, too.
        attention_span: how many times ``attention_factor`` a candidate's may be, and what part of it; 1: it is fixed.

    Raises:
        SettingsError: if a bound, the step or a choice cannot be used.
    """

    pairs: int
    lambda_min: float
    lambda_max: float
    lambda_step: float = 0.01
    n_hat_choices: tuple[int, ...] = PAPER_N_HAT
    attention_factor: float = 1.0
    attention_span: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lambda_min", "lambda_max", "lambda_step", "attention_factor", "attention_span"):
            value = float(getattr(self, name))
            if not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name} is {value}; give a finite number above 0")
            object.__setattr__(self, name, value)
        if self.pairs < 1:
            raise SettingsError(f"a search over {self.pairs} rotated pairs has nothing to search; give at least 1")
        if self.lambda_max < self.lambda_min:
            raise SettingsError(
                f"lambda_max {self.lambda_max} is below lambda_min {self.lambda_min}; give at least {self.lambda_min}"
            )
        if self.lambda_step < FINEST_STEP:
            raise SettingsError(f"lambda_step is {self.lambda_step}; give at least {FINEST_STEP}")
        if self.attention_span < 1:
            raise SettingsError(f"attention_span is {self.attention_span}; give at least 1")
        if not self.n_hat_choices:
            raise SettingsError("there are no choices for n_hat; give at least one, for example 0")
        for choice in self.n_hat_choices:
            if choice != int(choice) or choice < 0:
                raise SettingsError(f"n_hat choice {choice} is not a whole number of tokens; give 0 or more")
        choices = {0 if choice == 1 else int(choice) for choice in self.n_hat_choices}
        object.__setattr__(self, "n_hat_choices", tuple(sorted(choices)))

    @cached_property
    def _grid(self) -> tuple[int, int, int]:
        """Integers (first, step, scale): grid point k is (first + k * step) / scale."""
        first, step = Fraction(repr(self.lambda_min)), Fraction(repr(self.lambda_step))
        scale = math.lcm(first.denominator, step.denominator)
        return int(first * scale), int(step * scale), scale

    @cached_property
    def last(self) -> int:
        """Index of the highest grid point that is not above lambda_max."""
        width = Fraction(repr(self.lambda_max)) - Fraction(repr(self.lambda_min))
        return math.floor(width / Fraction(repr(self.lambda_step)))

    @property
    def searches_attention(self) -> bool:
        """Whether candidates differ in their attention factor."""
        return self.attention_span > 1

    def nearest_attention(self, value: float) -> float:
        """The attention factor nearest to ``value`` that a candidate can have: four decimals where it is searched."""
        if not self.searches_attention:
            return self.attention_factor
        low, high = self.attention_factor / self.attention_span, self.attention_factor * self.attention_span
        return round(min(max(value, low), high), 4)

    def value(self, index: int) -> float:
        """Lambda at grid point ``index``; indices outside 0..last go on beyond the bounds."""
        first, step, scale = self._grid
        return (first + index * step) / scale

    def index(self, value: float) -> int:
        """Index of the grid point nearest to ``value``, within the bounds or not, but always a positive lambda."""
        first, step, scale = self._grid
        numerator, denominator = value.as_integer_ratio()
        distance, unit = numerator * scale - first * denominator, step * denominator
        lowest_positive = -((first - 1) // step)
        return max((2 * distance + unit) // (2 * unit), lowest_positive)

    def quantise(self, candidate: Candidate) -> Candidate:
        """``candidate`` with each lambda moved to its nearest grid point.

        Nothing else changes: values are not clipped to the bounds and not made monotone, because a seed from a
        published method is scored as what it is.
        """
        lambdas = tuple(self.value(self.index(value)) for value in candidate.lambdas)
        return Candidate(lambdas, candidate.n_hat, candidate.attention_factor)

    def contains(self, candidate: Candidate) -> bool:
        """Whether ``candidate`` could be proposed: on the grid, within the bounds, monotone, a known n_hat."""
        if not all(math.isfinite(value) for value in candidate.lambdas):
            return False
        indices = [self.index(value) for value in candidate.lambdas]
        return (
            len(indices) == self.pairs
            and all(0 <= index <= self.last for index in indices)
            and all(self.value(index) == value for index, value in zip(indices, candidate.lambdas, strict=True))
            and all(before <= after for before, after in pairwise(indices))
            and candidate.n_hat in self.n_hat_choices
            and candidate.attention_factor == self.nearest_attention(candidate.attention_factor)
        )

    def project(self, candidate: Candidate) -> Candidate:
        """A candidate of this space near ``candidate``, which stays as it is when the space contains it.

        Lambdas are quantised, clipped to the bounds and replaced by their running maximum; n_hat becomes the
        nearest choice, and the attention factor the nearest one.
        """
        nearest = self.at(self.indices(candidate), self.nearest_n_hat(candidate))
        return Candidate(nearest.lambdas, nearest.n_hat, self.nearest_attention(candidate.attention_factor))

    def indices(self, candidate: Candidate) -> tuple[int, ...]:
        """Grid indices of the projected lambdas: rising, within 0..last."""
        clipped = (min(max(self.index(value), 0), self.last) for value in candidate.lambdas)
        return tuple(accumulate(clipped, max))

    def nearest_n_hat(self, candidate: Candidate) -> int:
        """The choice of n_hat nearest to the candidate's, the smaller of two equally near."""
        return min(self.n_hat_choices, key=lambda choice: (abs(choice - candidate.n_hat), choice))

    def at(self, indices: Sequence[int], n_hat: int) -> Candidate:
        """The candidate with lambdas at these grid points."""
        return Candidate(tuple(map(self.value, indices)), n_hat, self.attention_factor)
