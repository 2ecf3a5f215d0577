"""The watch on held-out documents: it warns where they get worse while the search improves, and chooses nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_search import Table, scoring

from longrope.data.samples import Sample
from longrope.search.candidate import Candidate
from longrope.search.overfitting import Look, Watch

TOKENS = 100
HELD_OUT = [Sample(f"document {index}", [index] * 8) for index in range(6)]
NUMBER = {sample.digest: index for index, sample in enumerate(HELD_OUT)}
SPREAD = [-2.0, -1.0, 0.0, 0.0, 1.0, 2.0]
"""Of the documents' changes about their mean; its standard error is sqrt(2 / 6)."""
FIRST = Candidate((0.0,), 0, 1.0)


def worse(by: float) -> Candidate:
    """A candidate that loses so many standard errors more than the first, in the mean."""
    return Candidate((by,), 1, 1.0 + 1e-3)


def blocks(candidate: Candidate, sample: str) -> list[float]:
    document = NUMBER[sample]
    change = candidate.lambdas[0] * math.sqrt(2 / 6) + SPREAD[document] if candidate != FIRST else 0.0
    return [100.0 + 10 * document + change]


def looks(path: Path, *seen: tuple[Candidate, float], held_out: int = 6) -> tuple[list[str | None], list[Look], int]:
    """What is told of each best candidate with its search perplexity, the looks, how many evaluations it took."""
    watch = Watch(HELD_OUT[:held_out])
    with scoring(path, Table(blocks, TOKENS)) as (scorer, pool):
        told = [watch.look(scorer, 10 * number, best, search) for number, (best, search) in enumerate(seen, 1)]
    return told, watch.looks, len(pool.asked)


@pytest.mark.parametrize(
    ("by", "search", "warned"),
    [
        (1.1, 4.9, True),
        (0.9, 4.9, False),  # within the standard error of the change, which is far below that of the documents
        (-3.0, 4.9, False),
        (1.1, 5.1, False),  # the search does not improve
    ],
)
def test_it_warns_where_held_out_documents_do_worse_and_the_search_better(
    by: float, search: float, warned: bool, tmp_path: Path
) -> None:
    told, *_ = looks(tmp_path / "journal", (FIRST, 5.0), (worse(by), search))
    assert all(text is not None for text in told)
    assert ["do worse while the search goes on improving" in str(text) for text in told] == [False, warned]


def test_a_look_is_perplexity_and_its_standard_error_over_documents(tmp_path: Path) -> None:
    told, [look], _ = looks(tmp_path / "journal", (FIRST, 5.0))
    losses = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    deviation = math.sqrt(sum((loss - 1.25) ** 2 for loss in losses) / 5)
    assert look == Look(
        10, 5.0, pytest.approx(math.exp(1.25)), pytest.approx(math.exp(1.25) * deviation / math.sqrt(6))
    )
    assert told == [f"after 10 candidates: search 5.0000, held-out {look.held_out:.4f} ± {look.standard_error:.4f}"]


def test_only_a_new_best_candidate_is_looked_at(tmp_path: Path) -> None:
    told, seen, asked = looks(tmp_path / "journal", (FIRST, 5.0), (FIRST, 5.0), (worse(1.0), 4.9), (worse(1.0), 4.9))
    assert [text is not None for text in told] == [True, False, True, False]
    assert [look.evaluations for look in seen] == [10, 30]
    assert asked == 2 * 6


@pytest.mark.parametrize("held_out", [0, 1])
def test_nothing_is_scored_where_documents_are_too_few_to_tell(held_out: int, tmp_path: Path) -> None:
    assert looks(tmp_path / "journal", (FIRST, 5.0), held_out=held_out) == ([None], [], 0)


def test_a_document_that_cannot_be_scored_is_no_end(tmp_path: Path) -> None:
    watch = Watch(HELD_OUT)
    bad = HELD_OUT[2].digest
    with scoring(
        tmp_path / "journal", Table(blocks, TOKENS), fails=lambda task: "gone" if task.sample == bad else None
    ) as (scorer, _):
        assert watch.look(scorer, 10, FIRST, 5.0) is None
    assert watch.looks == []
