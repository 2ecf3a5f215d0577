"""Bayesian optimisation over the genes of a level: a Gaussian process says where improvement is expected.

Expected improvement and its use of a believer for rounds of several candidates: Jones et al. 1998, and Ginsbourger et
al. 2010. An evaluation of a long sample takes seconds to hours; the process takes a fraction of a second for 200
candidates at ten knots, and seconds for each new fit in the last level, where every pair is a gene.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.search.candidate import Candidate
from longrope.search.levels import Genes, Level
from longrope.search.optimiser import Optimiser

Matrix = npt.NDArray[np.float64]

FIRST_SPREAD = 0.8
"""Standard deviation of the first round, in the units of the genes."""
NEAR_BEST = 0.1
"""Nats above the best score within which differences count in full; how much worse the bad are says nothing."""
REFITTED = 1.1
"""The kernel's parameters are fitted anew when the evaluations have grown by this."""
ELITE = 4
DRAWN, NEAR = 1000, 1500
"""Vectors to choose from: anywhere, and about the best ones."""


class BayesianOptimiser(Optimiser):
    """A Gaussian process with a length scale for every gene, and expected improvement in log perplexity."""

    def __init__(self, level: Level, round_size: int, seed: int, start_score: float | None = None) -> None:
        super().__init__(level, round_size, seed, start_score)
        self._random = np.random.default_rng(seed)
        self._kernel: Any = None
        self._points = 0  # that the kernel was fitted to
        self._genes: list[Genes] = []
        self._scores: list[float] = []
        self._errors: list[float] = []
        self._known: set[Candidate] = set()
        if start_score is not None:
            self.tell([level.start], [start_score], [0.0])

    def ask(self) -> list[Genes]:
        if not np.isfinite(self._scores).sum() >= 2:
            return self._first()
        genes, scores, errors = np.array(self._genes), np.log(self._scores), np.array(self._errors)
        counted = np.exp((scores.min() - scores) / NEAR_BEST)
        scores, errors = -NEAR_BEST * counted, np.where(np.isfinite(errors), errors, 0.0) * counted
        process = self._fitted(genes, scores, errors)
        chosen: list[Genes] = []
        known = set(self._known)
        for _ in range(self.round_size):
            offered = self._offered(genes[np.argsort(scores, kind="stable")[:ELITE]])
            mean, deviation = process.predict(offered, return_std=True)
            expected = _expected_improvement(scores.min(), mean, deviation)
            foremost = np.argsort(-expected, kind="stable").tolist()
            pick = next((each for each in foremost if self.level.decode(offered[each]) not in known), None)
            if pick is None:  # all that is offered is known
                return chosen + [offered[foremost[0]]] * (self.round_size - len(chosen))
            known.add(self.level.decode(offered[pick]))
            chosen.append(offered[pick])
            # Believe the prediction, so that the next of the round is looked for elsewhere.
            genes = np.vstack([genes, offered[pick]])
            scores, errors = np.append(scores, mean[pick]), np.append(errors, 0.0)
            process = _process(process.kernel_, genes, scores, errors, fixed=True)
        return chosen

    def tell(self, genes: Sequence[Genes], scores: Sequence[float], errors: Sequence[float]) -> None:
        for each, score, error in zip(genes, scores, errors, strict=True):
            candidate = self.level.decode(each)
            if candidate not in self._known:  # the process would only grow by what it knows
                self._known.add(candidate)
                self._genes.append(each)
                self._scores.append(score)
                self._errors.append(error)

    def _first(self) -> list[Genes]:
        """A round that fills the space evenly (Sobol), as a normal distribution would."""
        from scipy.stats import norm, qmc

        size = self.level.size
        with warnings.catch_warnings():  # balance needs a power of two, evenness does not
            warnings.simplefilter("ignore", UserWarning)
            points = qmc.Sobol(size, rng=self._random).random(self.round_size)
        return list(self.level.start + FIRST_SPREAD * norm.ppf(np.clip(points, 0.02, 0.98)))

    def _offered(self, elite: Matrix) -> Matrix:
        size = self.level.size
        anywhere = self.level.start + self._random.normal(size=(DRAWN, size))
        reach = np.exp(self._random.uniform(-3, 0, (NEAR, 1)))
        near = elite[self._random.integers(len(elite), size=NEAR)] + reach * self._random.normal(size=(NEAR, size))
        return np.vstack([anywhere, near])

    def _fitted(self, genes: Matrix, scores: Matrix, errors: Matrix) -> Any:
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        if self._kernel is not None and len(genes) < REFITTED * self._points:
            return _process(self._kernel, genes, scores, errors, fixed=True)
        width = math.sqrt(self.level.size / 5)  # distances grow with the number of genes
        kernel = ConstantKernel(1.0, (0.1, 10.0)) * RBF([width] * self.level.size, (0.3 * width, 6 * width))
        process = _process(kernel + WhiteKernel(1e-3, (1e-5, 0.1)), genes, scores, errors)
        self._kernel, self._points = process.kernel_, len(genes)
        return process


def _process(kernel: Any, genes: Matrix, scores: Matrix, errors: Matrix, fixed: bool = False) -> Any:
    """A process fitted to what is known, and how well; its kernel's parameters are fitted as well unless fixed."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor

    noise = 1e-10 + (errors / max(float(scores.std()), 1e-9)) ** 2  # it is added to scores of unit variance
    process = GaussianProcessRegressor(
        kernel, alpha=noise, optimizer=None if fixed else "fmin_l_bfgs_b", normalize_y=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # parameters at their bounds, which bounds are for
        return process.fit(genes, scores)


def _expected_improvement(best: float, mean: Matrix, deviation: Matrix) -> Matrix:
    from scipy.stats import norm

    deviation = np.maximum(deviation, 1e-9)
    gain = (best - mean) / deviation
    expected: Matrix = deviation * (gain * norm.cdf(gain) + norm.pdf(gain))
    return expected
