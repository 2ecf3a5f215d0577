"""Scorer: answers evaluations from the journal, and has the rest computed by the pool, journaling each as it comes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from longrope.data.samples import Sample
from longrope.model.score import perplexity
from longrope.runs.journal import Journal
from longrope.runs.progress import Progress
from longrope.search.candidate import Candidate
from longrope.search.evaluation import Batch, BlockScore, Task
from longrope.workers.pool import EvaluationPool, Failure

SECONDS_DIGITS = 6
"""Decimals of a time in the journal."""


class Scorer:
    """Scores pairs of candidate and sample; every pair gets one result in the life of a journal, which stands.

    Args:
        batch: candidates in one forward pass, the same throughout the life of a journal.
        lengths: tokens of each sample, by digest; what takes longest is begun first.

    Attributes:
        batch: as given.
        evaluated: evaluations computed by this process, as opposed to read from the journal.
        model_seconds: time its workers spent in the model for them.
    """

    def __init__(
        self,
        pool: EvaluationPool[Any, Any],
        journal: Journal,
        progress: Progress,
        batch: int = 1,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        self.batch = batch
        self._pool = pool
        self._lengths = lengths or {}
        self._journal = journal
        self._progress = progress
        self._known: dict[Task, BlockScore | Failure] = {}
        self._answered: set[Task] = set()
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
        for task in wanted:
            if task in self._known:
                self._progress.advance()
        # A resumed run forms the batches of the first one, whatever its journal knows: each candidate keeps its row and
        # its companions. What is known as a whole is left out.
        groups = self._grouped(task for task in wanted if task not in self._answered)
        for task, result in self._evaluated([group for group in groups if not self._known.keys() >= set(group)]):
            self._known[task] = result
            self._write(task, result)
            self.evaluated += 1
            self._progress.advance()
        self._journal.sync()
        self._answered.update(wanted)
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

    def _grouped(self, tasks: Iterable[Task]) -> list[list[Task]]:
        """Tasks on one sample together, at most as many as a batch has rows; those on long samples first."""
        groups: list[list[Task]] = []
        last: dict[str, list[Task]] = {}
        for task in tasks:
            if len(last.get(task.sample, ())) % self.batch == 0:
                last[task.sample] = []
                groups.append(last[task.sample])
            last[task.sample].append(task)
        return sorted(groups, key=lambda group: -self._lengths.get(group[0].sample, 0))

    def _evaluated(self, groups: Sequence[Sequence[Task]]) -> Iterator[tuple[Task, BlockScore | Failure]]:
        """The results of the tasks that are not known, as they arrive."""
        if self.batch == 1:
            yield from self._pool.run([task for group in groups for task in group])
            return
        batches = {self._filled(group): group for group in groups}
        alone: list[Task] = []
        for batch, results in self._pool.run(list(batches)):
            if isinstance(results, Failure):
                self._progress.note(f"{batch.label}: failed together ({results.reason}), so they are scored one by one")
                alone += [task for task in batches[batch] if task not in self._known]
                continue
            for task, result in zip(batches[batch], results, strict=False):  # rows beyond the tasks are fillers
                if task not in self._known:
                    yield task, result
        yield from self._pool.run(alone)  # one row: what did not fit together shall fit now

    def _filled(self, group: Sequence[Task]) -> Batch:
        """A batch of as many rows as any other, since the number of rows decides the last bits of a score."""
        candidates = [task.candidate for task in group]
        return Batch((*candidates, *candidates[-1:] * (self.batch - len(candidates))), group[0].sample)

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
                "seconds": round(result.seconds, SECONDS_DIGITS),
            }
        )


def pooled(results: Sequence[BlockScore | Failure]) -> float:
    """Perplexity over all results together; infinite where an evaluation failed."""
    scores = [result for result in results if isinstance(result, BlockScore)]
    if len(scores) < len(results):
        return math.inf
    # fsum: the same total in whatever order the samples were scored
    return perplexity(math.fsum(score.total for score in scores), sum(score.tokens for score in scores))
