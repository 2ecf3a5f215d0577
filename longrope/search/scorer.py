"""Scorer: answers evaluations from the journal, and has the rest computed by the pool, journaling each as it comes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longrope.data.samples import Sample
from longrope.model.score import perplexity
from longrope.runs.journal import Journal
from longrope.runs.progress import Progress
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.workers.pool import EvaluationPool, Failure


class Scorer:
    """Scores pairs of candidate and sample; every pair is evaluated at most once in the life of a journal.

    Attributes:
        evaluated: evaluations computed by this process, as opposed to read from the journal.
        model_seconds: time its workers spent in the model for them.
    """

    def __init__(self, pool: EvaluationPool[Task, BlockScore], journal: Journal, progress: Progress) -> None:
        self._pool = pool
        self._journal = journal
        self._progress = progress
        self._known: dict[Task, BlockScore | Failure] = {}
        self.evaluated = 0
        self.model_seconds = 0.0
        for event in journal.events:
            if event["kind"] in ("evaluation", "failure"):
                task = Task(Candidate.from_dict(event["candidate"]), event["sample"])
                if event["kind"] == "evaluation":
                    self._known[task] = BlockScore(tuple(event["nll"]), event["tokens"], event["seconds"])
                else:
                    self._known[task] = Failure(event["reason"])
        if not any(isinstance(result, BlockScore) for result in self._known.values()):
            self._known.clear()  # what stopped everything may be mended by now: try again

    @property
    def workers(self) -> int:
        """Evaluators that work at the same time."""
        return self._pool.workers

    def score(self, tasks: Iterable[Task]) -> dict[Task, BlockScore | Failure]:
        """The result of every task; returns when all are there, which makes each call a barrier."""
        wanted = list(dict.fromkeys(tasks))
        missing = [task for task in wanted if task not in self._known]
        for _ in range(len(wanted) - len(missing)):
            self._progress.advance()
        for task, result in self._pool.run(missing):
            self._known[task] = result
            self._write(task, result)
            self.evaluated += 1
            self._progress.advance()
        self._journal.sync()
        return {task: self._known[task] for task in wanted}

    def perplexities(self, candidates: Sequence[Candidate], samples: Sequence[Sample]) -> dict[Candidate, float]:
        """Perplexity of each candidate over all samples together; infinite where an evaluation failed."""
        results = self.score(Task(candidate, sample.digest) for candidate in candidates for sample in samples)
        return {
            candidate: pooled([results[Task(candidate, sample.digest)] for sample in samples])
            for candidate in candidates
        }

    def known(self, task: Task) -> BlockScore | Failure:
        """The result of a task that was scored before."""
        return self._known[task]

    def skip(self, evaluations: int) -> None:
        """Evaluations that were planned and are not needed."""
        for _ in range(evaluations):
            self._progress.advance()

    def record(self, event: Mapping[str, Any]) -> None:
        """Journal a decision, unless it stands there since before a resumption."""
        if dict(event) not in self._journal.events:
            self._journal.append(event)

    def failures(self) -> list[Failure]:
        """Every evaluation that failed for good."""
        return [result for result in self._known.values() if isinstance(result, Failure)]

    def _write(self, task: Task, result: BlockScore | Failure) -> None:
        event = {"candidate": task.candidate.to_dict(), "sample": task.sample}
        if isinstance(result, Failure):
            self._journal.append({"kind": "failure", **event, "reason": result.reason})
            return
        self.model_seconds += result.seconds
        self._journal.append(
            {
                "kind": "evaluation",
                **event,
                "nll": list(result.nll),
                "tokens": result.tokens,
                "seconds": round(result.seconds, 6),
            }
        )


def pooled(results: Sequence[BlockScore | Failure]) -> float:
    """Perplexity over all results together; infinite where an evaluation failed."""
    scores = [result for result in results if isinstance(result, BlockScore)]
    if len(scores) < len(results):
        return math.inf
    # fsum: the same total in whatever order the samples were scored
    return perplexity(math.fsum(score.total for score in scores), sum(score.tokens for score in scores))
