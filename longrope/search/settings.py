"""What a user chooses for a search or a readjustment; every name is also an option of the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.rope.attention_factor import resolve
from longrope.schema import STRICT, Length
from longrope.search.genetic import HALVED_ABOVE, GeneticSettings
from longrope.search.space import PAPER_N_HAT
from longrope.workers.settings import ExecutionSettings

ALGORITHMS = ("paper",)
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

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise SettingsError(f"objective {self.objective!r} is not known; use {' or '.join(OBJECTIVES)}")
        if self.samples is not None and self.samples < 1:
            raise SettingsError(f"samples is {self.samples}; give at least 1")
        if self.held_out < 0:
            raise SettingsError(f"held-out is {self.held_out}; give 0 or more")
        if self.max_documents is not None and self.max_documents < 1:
            raise SettingsError(f"max-documents is {self.max_documents}; give at least 1")

    def sample_count(self, length: int) -> int:
        """Search samples for a target of ``length`` tokens."""
        return self.samples if self.samples is not None else (3 if length > HALVED_ABOVE else 5)


@dataclass(frozen=True, kw_only=True)
class AlgorithmSettings:
    """The search algorithm and its sizes; what is not given is the paper's value for the length.

    Attributes:
        algorithm: ``paper``, the genetic algorithm of LongRoPE.
        population, mutations, crossovers, parents, iterations, mutation_probability: see GeneticSettings.
        max_evaluations: candidates scored at most.
        n_hat: choices of the start-token threshold.
        lambda_max: largest lambda; 1.25 times target over original length when not given.
        attention_factor: ``su``, ``yarn``, ``present``, ``none``, a number, or ``auto``: ``su`` for a plain model and
            ``present`` for one that is scaled already, which may have been trained with it.
    """

    __pydantic_config__ = STRICT

    algorithm: str = "paper"
    population: int | None = None
    mutations: int | None = None
    crossovers: int | None = None
    parents: int | None = None
    iterations: int | None = None
    mutation_probability: float | None = None
    max_evaluations: int | None = None
    n_hat: tuple[int, ...] = PAPER_N_HAT
    lambda_max: float | None = None
    attention_factor: str | float = "auto"

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise SettingsError(f"algorithm {self.algorithm!r} is not known; use {' or '.join(ALGORITHMS)}")
        self.genetic(1)  # refuses sizes, whatever the length
        if self.population is not None and self.parents is not None and self.parents > self.population:
            raise SettingsError(
                f"parents is {self.parents}, more than the population of {self.population}; choose from those there are"
            )
        if not self.n_hat or min(self.n_hat) < 0:
            raise SettingsError(f"n_hat choices are {list(self.n_hat)}; give at least one, and none below 0")
        if self.lambda_max is not None and not 0 < self.lambda_max < math.inf:
            raise SettingsError(f"lambda_max is {self.lambda_max}; give a finite number above 0")
        if self.attention_factor != "auto":
            resolve(self.attention_factor, ratio=1, original_length=2, present=1.0)  # refuses what it does not know

    def genetic(self, length: int) -> GeneticSettings:
        """Sizes for a target of ``length`` tokens."""
        defaults = GeneticSettings.paper(length)
        given = {
            name: value
            for name in ("population", "mutations", "crossovers", "parents", "iterations", "mutation_probability")
            if (value := getattr(self, name)) is not None
        }
        return GeneticSettings(**{**vars(defaults), **given, "max_evaluations": self.max_evaluations})


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
