"""What a user chooses for a search or a readjustment; every name is also an option of the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.rope.attention_factor import resolve
from longrope.schema import STRICT, Length
from longrope.search.algorithms import Sizes
from longrope.search.coarse_to_fine import CoarseToFineSettings
from longrope.search.paper import HALVED_ABOVE, PaperSettings
from longrope.search.space import PAPER_N_HAT
from longrope.search.stopping import Budget
from longrope.workers.settings import ExecutionSettings

PAPER = "paper"
ALGORITHMS = (PAPER, "genetic", "cma")
SEARCHED_ATTENTION = "search"
PAPER_LAMBDA_MAX_RATIO = 1.25
"""Largest lambda over target / original length: in the paper (arXiv 2402.13753, table 4)"""
FREE_LAMBDA_MAX_RATIO = 4.0
"""and in the other algorithms: pairs that never turned whole in training do well with lambda beyond the ratio."""
WATCHED_EVERY = 10
CMA_LEAST = 4
"""Candidates of a round from which CMA-ES learns more than one direction."""
PERPLEXITY, NEEDLE = OBJECTIVES = ("perplexity", "needle")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where long samples come from.

    Attributes:
        source: a file, a folder, or a Hugging Face dataset id.
        field: the text field of JSONL, parquet and datasets.
        samples: documents that score candidates; 5, or 3 above 512k tokens, as in the paper, when not given.
        held_out: other documents, scored at the end only; 0 for none.
        concatenate: join documents instead of asking for long ones.
        max_documents: stop reading after that many documents; 2000 of a hub dataset when not given.
        objective: ``perplexity`` of all tokens, or ``needle``: of the answer to a question about the start of the text
            (needle-driven perplexity of LongRoPE2, arXiv 2502.20082).
        last: tokens at the end of each sample that count, after all others were read; every token when not given.
    """

    __pydantic_config__ = STRICT

    source: str
    field: str = "text"
    split: str = "train"
    revision: str | None = None
    config: str | None = None
    samples: int | None = None
    held_out: int = 10
    concatenate: bool = False
    max_documents: int | None = None
    objective: str = PERPLEXITY
    last: int | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise SettingsError(f"objective {self.objective!r} is not known; use {' or '.join(OBJECTIVES)}")
        if self.last is not None and self.last < 1:
            raise SettingsError(f"last is {self.last}; give at least 1")
        if self.last is not None and self.objective == NEEDLE:
            raise SettingsError("last is for the perplexity of texts, and objective is needle; leave one of them away")
        if self.samples is not None and self.samples < 1:
            raise SettingsError(f"samples is {self.samples}; give at least 1")
        if self.held_out < 0:
            raise SettingsError(f"held-out is {self.held_out}; give 0 or more")
        if self.max_documents is not None and self.max_documents < 1:
            raise SettingsError(f"max-documents is {self.max_documents}; give at least 1")

    @property
    def scores_all(self) -> bool:
        """Whether all tokens of a sample count, and not only its end, of which no prefix has a part."""
        return self.objective == PERPLEXITY and self.last is None

    @property
    def scored_part(self) -> str:
        """Which tokens of a sample count, where not all do."""
        return scored_part(self.objective, self.last)

    def check_length(self, length: int) -> None:
        """Raise SettingsError if more tokens should count than texts of ``length`` have."""
        if self.last is not None and self.last > length - 1:
            raise SettingsError(
                f"last is {self.last}, but a text of {length} tokens has {length - 1} that are predicted; give at most "
                "that, or null where it is set for several stages"
            )

    def sample_count(self, length: int) -> int:
        """Search samples for a target of ``length`` tokens."""
        return self.samples if self.samples is not None else (3 if length > HALVED_ABOVE else 5)


def scored_part(objective: str, last: int | None) -> str:
    """Which tokens of a sample count, where not all do, as the end of a phrase: " of the last 255 tokens"."""
    if objective == NEEDLE:
        return " of the answers"
    return "" if last is None else f" of the last {last:,} tokens"


@dataclass(frozen=True, kw_only=True)
class AlgorithmSettings:
    """The search algorithm and its sizes.

    Attributes:
        algorithm: ``paper``, the genetic algorithm of LongRoPE; or one that goes from coarse to fine: ``genetic`` or
            ``cma`` (CMA-ES).
        population: candidates of the first round of ``paper``, see PaperSettings; of every round of the others.
        mutations, crossovers, parents, iterations, mutation_probability: of ``paper``, see PaperSettings.
        max_evaluations: candidates scored at most; 200 when not given, and for ``paper`` what its rounds come to.
        max_gpu_hours: time in the model at most, of all evaluators together; evaluator-hours on CPUs.
        patience: rounds without a clearly better candidate after which the search ends; no such end when not given.
        racing: whether candidates that are clearly behind after some of the samples are scored no further; when not
            given, all but ``paper`` do it.
        watch: rounds between looks at held-out documents, 0 for none; 10 when not given, 0 for ``paper``.
        n_hat: choices of the start-token threshold; when not given the paper's 14 for ``paper``, otherwise only 0.
        lambda_max: largest lambda; when not given target over original length times 1.25 for ``paper``, 4 otherwise.
        attention_factor: ``su``, ``yarn``, ``present``, ``none``, a number, ``search`` (not for ``paper``), or
            ``auto``: ``present`` for a model that is scaled already, which may have been trained with it, ``su`` for a
            plain one.
    """

    __pydantic_config__ = STRICT

    algorithm: str = "genetic"
    population: int | None = None
    mutations: int | None = None
    crossovers: int | None = None
    parents: int | None = None
    iterations: int | None = None
    mutation_probability: float | None = None
    max_evaluations: int | None = None
    max_gpu_hours: float | None = None
    patience: int | None = None
    racing: bool | None = None
    watch: int | None = None
    n_hat: tuple[int, ...] | None = None
    lambda_max: float | None = None
    attention_factor: str | float = "auto"

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise SettingsError(f"algorithm {self.algorithm!r} is not known; use {' or '.join(ALGORITHMS)}")
        self.sizes(1)  # refuses them, whatever the length
        self.budget(1.0)
        if self.watch is not None and self.watch < 0:
            raise SettingsError(f"watch is {self.watch}; give a number of rounds, or 0")
        if self.population is not None and self.parents is not None and self.parents > self.population:
            raise SettingsError(
                f"parents is {self.parents}, more than the population of {self.population}; choose from those there are"
            )
        if self.n_hat is not None and (not self.n_hat or min(self.n_hat) < 0):
            raise SettingsError(f"n_hat choices are {list(self.n_hat)}; give at least one, and none below 0")
        if self.lambda_max is not None and not 0 < self.lambda_max < math.inf:
            raise SettingsError(f"lambda_max is {self.lambda_max}; give a finite number above 0")
        if self.attention_factor == SEARCHED_ATTENTION:
            if self.is_paper:
                raise SettingsError(
                    "the attention factor is not searched by algorithm 'paper'; give su or a number, or use "
                    f"{' or '.join(ALGORITHMS[1:])}"
                )
        elif self.attention_factor != "auto":
            resolve(self.attention_factor, ratio=1, original_length=2, present=1.0)  # refuses what it does not know

    @property
    def is_paper(self) -> bool:
        """Whether it is the paper's algorithm, with nothing added."""
        return self.algorithm == PAPER

    @property
    def races(self) -> bool:
        """Whether candidates are dropped before they are scored in full."""
        return not self.is_paper if self.racing is None else self.racing

    @property
    def watched_every(self) -> int:
        """Rounds between looks at held-out documents; 0 for none."""
        if self.watch is None:
            return 0 if self.is_paper else WATCHED_EVERY
        return self.watch

    @property
    def lambda_max_ratio(self) -> float:
        """Largest lambda over target / original length, where none is given."""
        return PAPER_LAMBDA_MAX_RATIO if self.is_paper else FREE_LAMBDA_MAX_RATIO

    @property
    def n_hat_choices(self) -> tuple[int, ...]:
        """Choices of the start-token threshold."""
        if self.n_hat is None:
            return PAPER_N_HAT if self.is_paper else (0,)
        return self.n_hat

    def sizes(self, length: int) -> Sizes:
        """Sizes for a target of ``length`` tokens.

        Raises:
            SettingsError: if one is given that the algorithm does not have.
        """
        own = ("mutations", "crossovers", "parents", "iterations", "mutation_probability")
        given = {name: value for name in ("population", *own) if (value := getattr(self, name)) is not None}
        if self.is_paper:
            defaults = PaperSettings.paper(length)
            return PaperSettings(**{**vars(defaults), **given, "max_evaluations": self.max_evaluations})
        for name in (name for name in own if name in given):
            raise SettingsError(
                f"{name} is a size of algorithm 'paper'; choose that, or leave it away with {self.algorithm!r}"
            )
        if self.algorithm == "cma" and self.population is not None and self.population < CMA_LEAST:
            raise SettingsError(f"population is {self.population}; give at least {CMA_LEAST} with 'cma'")
        if self.max_evaluations is not None:
            given["max_evaluations"] = self.max_evaluations
        return CoarseToFineSettings(**given)

    def budget(self, gpus_per_worker: float) -> Budget:
        """Limits besides the number of candidates."""
        return Budget(self.max_gpu_hours, self.patience, gpus_per_worker)


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """A search on one model for one target length.

    Attributes:
        model: a folder or a hub id.
        output: folder that receives factors.json, the journal, the table and the plots.
        target_length: tokens.
        resume: go on with the run in ``output``.
    """

    __pydantic_config__ = STRICT

    model: str
    output: str
    target_length: Length
    data: DataSettings
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    seed: int = 0
    revision: str | None = None
    resume: bool = False

    def describe(self) -> str:
        return f"{self.model} to {format_length(self.target_length)}"
