"""Factors for engines that have no n_hat: no engine but longrope itself keeps start tokens at their plain angle."""

from __future__ import annotations

from typing import Any

from longrope.exceptions import FactorsError
from longrope.lengths import format_length
from longrope.rope.factors import RopeFactors
from longrope.search.candidate import Candidate

TRANSFORMERS = "plain transformers"


def without_n_hat(factors: RopeFactors, replace: bool, engine: str = TRANSFORMERS) -> RopeFactors:
    """Factors that an engine without n_hat can apply.

    Args:
        factors: of one window; returned as they are where n_hat is 0.
        replace: take the best candidate with n_hat = 0 of the same search instead of refusing.
        engine: who cannot apply n_hat, for the error.

    Raises:
        FactorsError: if n_hat is not 0, and may not be replaced or the file names nothing to replace it with.
    """
    if factors.n_hat == 0:
        return factors
    results = factors.provenance.get("results", {})
    flat = results.get("best_without_n_hat")
    problem = f"the factors for {format_length(factors.target_length)} have n_hat = {factors.n_hat}, which {engine}"
    if flat is None:
        raise FactorsError(
            f"{problem} cannot apply, and their file names no candidate with n_hat = 0; search with --n-hat 0"
        )
    if not replace:
        keep = ", or --code, which keeps n_hat for trust_remote_code" if engine == TRANSFORMERS else ""
        raise FactorsError(
            f"{problem} cannot apply; add --without-n-hat to use the best candidate with n_hat = 0 of the same "
            f"search{_cost(results)}{keep}"
        )
    provenance = {**factors.provenance, "replaced": "the best candidate with n_hat = 0 of the search"}
    return Candidate.from_dict(flat).to_factors(factors, factors.target_length).replace(provenance=provenance)


def _cost(results: Any) -> str:
    rows = {row["method"]: row["search_perplexity"] for row in results.get("methods", ())}
    with_n_hat, flat = rows.get("longrope"), rows.get("longrope, n_hat = 0")
    return f" (perplexity {flat:.4f} instead of {with_n_hat:.4f})" if with_n_hat and flat else ""
