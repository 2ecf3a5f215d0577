"""When a search ends before its last round: its time is spent, or nothing better turns up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longrope.data.samples import Sample
from longrope.exceptions import SettingsError
from longrope.search.candidate import Candidate
from longrope.search.lead import block_scores, lead
from longrope.search.scorer import Scorer


@dataclass(frozen=True)
class Budget:
    """Limits of a search besides its number of candidates.

    Attributes:
        hours: time in the model, of all evaluators together and times the GPUs of each; on CPUs evaluator-hours.
        patience: rounds that may pass without a best candidate which is better than the last one by more than the
            standard error of their difference.
        gpus_per_worker: how many times an evaluator's time counts; at least 1.

    Raises:
        SettingsError: if a limit cannot be used.
    """

    hours: float | None = None
    patience: int | None = None
    gpus_per_worker: float = 1.0

    def __post_init__(self) -> None:
        if self.hours is not None and not self.hours > 0:
            raise SettingsError(f"max-gpu-hours is {self.hours}; give a number above 0")
        if self.patience is not None and self.patience < 1:
            raise SettingsError(f"patience is {self.patience}; give at least 1 round")


class Stopping:
    """Watches one search, round by round; what it decides depends only on what the journal holds."""

    def __init__(self, budget: Budget, samples: Sequence[Sample]) -> None:
        self._budget = budget
        self._samples = samples
        self._best: Candidate | None = None
        self._waited = 0

    def reason(self, scorer: Scorer, best: Candidate, seconds: float) -> str | None:
        """Why to stop after this round; None to go on.

        Args:
            best: the best candidate so far.
            seconds: time in the model until now, of all evaluators together.
        """
        hours = seconds * max(self._budget.gpus_per_worker, 1.0) / 3600
        if self._budget.hours is not None and hours >= self._budget.hours:
            return f"{hours:.3g} GPU-hours are spent, of {self._budget.hours:g}"
        if self._improved(scorer, best):
            self._best, self._waited = best, 0
        else:
            self._waited += 1
        if self._budget.patience is not None and self._waited >= self._budget.patience:
            return f"nothing clearly better was found in {self._waited} rounds"
        return None

    def _improved(self, scorer: Scorer, best: Candidate) -> bool:
        if self._best is None:
            return True
        if best == self._best:
            return False
        own, before = (block_scores(scorer, each, self._samples) for each in (best, self._best))
        found = lead(own, before)
        return found.mean > (found.standard_error if found.blocks > 1 else 0.0)
