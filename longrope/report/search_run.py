"""A finished search as its folder tells it: the methods that were compared, and every evaluation in the journal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.exceptions import InvalidInputError
from longrope.model.score import BLOCK, perplexity
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import load_factors
from longrope.runs.journal import read_journal
from longrope.search.candidate import Candidate
from longrope.search.comparison import MethodResult
from longrope.search.evaluation import BlockScore
from longrope.search.run import FACTORS_FILE, JOURNAL_FILE, RUN_FILE
from longrope.search.settings import PERPLEXITY, scored_part
from longrope.search.solve import SEARCHED

Scores = Mapping[tuple[Candidate, str], BlockScore]


@dataclass(frozen=True)
class ComparedMethod:
    """A row of the comparison.

    Attributes:
        search: perplexity on the search samples; None where it failed.
        held_out: perplexity on held-out documents by length.
        candidate: its factors at the target length; None where the journal does not have them.
    """

    name: str
    attention_factor: float
    search: float | None
    held_out: dict[int, float | None] = field(hash=False)
    candidate: Candidate | None

    @property
    def label(self) -> str:
        """The name, with the attention factor that tells rows of one method apart."""
        return self.name if self.name.startswith(SEARCHED) else f"{self.name} ({self.attention_factor:.3f})"


@dataclass(frozen=True)
class SearchRun:
    """A search, or one window of a readjustment.

    Attributes:
        provenance: of the factors.
        header: settings in the journal; None without a journal.
        record: ``run.json``; None without.
        samples: digests of the search samples and of the held-out documents, at the target length.
        methods: in the order of the comparison, the searched factors among the last.
        candidates: what the algorithm asked for, in the order of the journal, with the perplexity on all search
            samples; inf where it failed, nan where it was dropped before it was scored on all of them.
        scores: all that the journal holds.
        failures: reasons by what failed.
    """

    folder: Path
    factors: RopeFactors
    header: dict[str, Any] | None
    record: dict[str, Any] | None
    samples: tuple[str, ...]
    held_out: tuple[str, ...]
    methods: tuple[ComparedMethod, ...]
    candidates: tuple[tuple[Candidate, float], ...]
    scores: Scores
    failures: dict[str, str]

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.factors.provenance

    @property
    def is_readjustment(self) -> bool:
        return "readjust" in str(self.provenance.get("method"))

    @property
    def scored_part(self) -> str:
        """Which tokens of a sample counted, where not all did."""
        data: Mapping[str, Any] = self.provenance.get("data", {})
        return scored_part(data.get("objective", PERPLEXITY), data.get("last"))

    @property
    def searched(self) -> ComparedMethod | None:
        """The searched factors' row."""
        return next((method for method in self.methods if method.name == SEARCHED), None)

    @property
    def rivals(self) -> tuple[ComparedMethod, ...]:
        """Of every other method the row that is best on held-out documents, or on the search samples without."""
        best: dict[str, ComparedMethod] = {}
        for method in self.methods:
            if method.name.startswith(SEARCHED):
                continue
            if method.name not in best or self.judged(method) < self.judged(best[method.name]):
                best[method.name] = method
        return tuple(best.values())

    @property
    def reference(self) -> ComparedMethod | None:
        """What the searched factors have to beat: YaRN, or what is best where there is none."""
        rivals = {method.name: method for method in self.rivals}
        return rivals.get("yarn") or min(rivals.values(), key=self.judged, default=None)

    def judged(self, method: ComparedMethod) -> float:
        """Perplexity at the target length, held out where it was measured."""
        value = method.held_out.get(self.factors.target_length)
        value = method.search if value is None else value
        return math.inf if value is None else value

    def result(self, candidate: Candidate) -> MethodResult:
        """A candidate as the comparison sees it, at the target length; without losses unless all documents have one."""
        scored = [self.scores.get((candidate, digest)) for digest in self.held_out]
        losses = tuple((score.total, score.tokens) for score in scored if score is not None)
        complete = {self.factors.target_length: losses} if losses and len(losses) == len(self.held_out) else {}
        return MethodResult("", candidate.attention_factor, math.nan, complete)

    def blocks(self, candidate: Candidate) -> npt.NDArray[np.float64] | None:
        """NLL of each block of 256 tokens of each held-out document, or of each search sample where none is held out.

        Returns:
            (documents, blocks), or None where one was not scored.
        """
        digests = self.held_out or self.samples
        rows = [self.scores[candidate, digest].nll for digest in digests if (candidate, digest) in self.scores]
        if not rows or len(rows) < len(digests) or len({len(row) for row in rows}) > 1:
            return None
        return np.asarray(rows, dtype=np.float64)


def block_tokens(length: int) -> npt.NDArray[np.float64]:
    """Predicted tokens in each block of a text: the first token of a text is not predicted."""
    ends = np.minimum(np.arange(1, math.ceil(length / BLOCK) + 1) * BLOCK, length)
    tokens: npt.NDArray[np.float64] = np.diff(ends, prepend=1).astype(np.float64)
    return tokens


def open_search(folder: Path) -> SearchRun:
    """Read the folder of a search.

    Raises:
        InvalidInputError: if the search has no result yet, or a file of it cannot be read.
    """
    journal = folder / JOURNAL_FILE
    if not (folder / FACTORS_FILE).exists():
        raise InvalidInputError(
            f"{folder} holds a search without a result: it is still running, or was stopped; wait for it, or go on "
            "with it by --resume"
        )
    factors = load_factors(folder / FACTORS_FILE)
    if not isinstance(factors, RopeFactors):
        raise InvalidInputError(
            f"{folder / FACTORS_FILE} is a schedule, not the result of a search; give a run's folder"
        )
    header, events = read_journal(journal) if journal.exists() else (None, [])
    record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")) if (folder / RUN_FILE).exists() else None
    drawn = factors.provenance.get("data", {}).get("drawn", {})
    samples, held_out = (tuple(each["digest"] for each in drawn.get(name, ())) for name in ("search", "held_out"))
    scores, failures = _read(events)
    results = factors.provenance.get("results", {})
    found = _pooled(events, samples, scores)
    return SearchRun(
        folder,
        factors,
        header,
        record,
        samples,
        held_out,
        tuple(_method(row, found) for row in results.get("methods", ())),
        tuple(found.items())[: results.get("evaluations", len(found))],
        scores,
        failures,
    )


def _read(events: Sequence[Mapping[str, Any]]) -> tuple[dict[tuple[Candidate, str], BlockScore], dict[str, str]]:
    scores, failures = {}, {}
    for event in events:
        if event["kind"] not in ("evaluation", "failure"):
            continue
        candidate = Candidate.from_dict(event["candidate"])
        if event["kind"] == "evaluation":
            scores[candidate, event["sample"]] = BlockScore(tuple(event["nll"]), event["tokens"], event["seconds"])
        else:
            failures[f"candidate {candidate.key}, sample {event['sample'][:8]}"] = event["reason"]
    return scores, failures


def _pooled(events: Sequence[Mapping[str, Any]], samples: Sequence[str], scores: Scores) -> dict[Candidate, float]:
    """Perplexity on the search samples of every candidate that was tried on them, in the order of the journal."""
    tried = dict.fromkeys(
        Candidate.from_dict(event["candidate"])
        for event in events
        if event["kind"] in ("evaluation", "failure") and event["sample"] in samples
    )
    failed = {Candidate.from_dict(event["candidate"]) for event in events if event["kind"] == "failure"}
    found = {}
    for candidate in tried:
        parts = [scores[candidate, digest] for digest in samples if (candidate, digest) in scores]
        found[candidate] = math.inf if candidate in failed else math.nan
        if len(parts) == len(samples):
            found[candidate] = perplexity(math.fsum(part.total for part in parts), sum(part.tokens for part in parts))
    return found


def _method(row: Mapping[str, Any], found: Mapping[Candidate, float]) -> ComparedMethod:
    """A row of the results with the candidate that got this perplexity: the journal does not name methods."""
    value = row["search_perplexity"]
    candidate = next(
        (
            candidate
            for candidate, scored in found.items()
            if value is not None
            and math.isclose(scored, value, rel_tol=1e-12)
            and math.isclose(candidate.attention_factor, row["attention_factor"], rel_tol=1e-12)
        ),
        None,
    )
    held_out = {int(length): each for length, each in row["held_out_perplexity"].items()}
    return ComparedMethod(row["method"], row["attention_factor"], value, held_out, candidate)
