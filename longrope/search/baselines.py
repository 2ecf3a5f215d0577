"""The published methods a search starts from and is compared with, composed with the model's present factors."""

from __future__ import annotations

from dataclasses import dataclass

from longrope.model.published import published_policies
from longrope.model.rope_config import ModelRope
from longrope.rope.policy import RopePolicy
from longrope.search.candidate import Candidate


@dataclass(frozen=True)
class Baseline:
    """A method by name, as the policy it would serve with.

    Attributes:
        name: ``none``, ``pi``, ``ntk``, ``dynamic-ntk``, ``yarn``, or what else a comparison needs.
        policy: its factors at every length, at its published attention factor.
        attention_factor: replaces the published one at every length when given.
    """

    name: str
    policy: RopePolicy
    attention_factor: float | None = None

    def at(self, length: int) -> Candidate:
        """What a sequence of ``length`` tokens would be computed with."""
        factors = self.policy.factors_for(length)
        candidate = Candidate.from_factors(factors)
        if self.attention_factor is None:
            return candidate
        return Candidate(candidate.lambdas, candidate.n_hat, self.attention_factor)

    def with_attention_factor(self, attention_factor: float) -> Baseline:
        return Baseline(self.name, self.policy, attention_factor)


def published_baselines(rope: ModelRope, target_length: int) -> tuple[Baseline, ...]:
    """The published methods for this model at ``target_length``."""
    return tuple(Baseline(name, policy) for name, policy in published_policies(rope, target_length).items())


def both_attention_factors(baselines: tuple[Baseline, ...], attention_factor: float) -> tuple[Baseline, ...]:
    """Each baseline at its published attention factor and, where that differs, at the search's as well."""
    rows = []
    for baseline in baselines:
        rows.append(baseline)
        if abs(baseline.policy.reference.attention_factor - attention_factor) > 1e-12:
            rows.append(baseline.with_attention_factor(attention_factor))
    return tuple(rows)
