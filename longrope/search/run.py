"""A run: the folder, journal, samples and workers that searches and readjustments share."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longrope.data.documents import read_documents
from longrope.data.needles import needle_sample
from longrope.data.samples import Sample, SampleSet, draw_samples
from longrope.exceptions import OtherRunError, RunExistsError
from longrope.files import write_text_atomically
from longrope.lengths import format_length
from longrope.runs.journal import Journal
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress
from longrope.runs.provenance import machine, versions
from longrope.search.batching import settle_batch
from longrope.search.comparison import held_out_samples
from longrope.search.evaluator import ModelEvaluatorFactory
from longrope.search.scorer import Scorer
from longrope.search.settings import DataSettings
from longrope.workers.settings import ExecutionSettings
from longrope.workers.start import make_pool

JOURNAL_FILE = "evaluations.jsonl"
FACTORS_FILE = "factors.json"
RUN_FILE = "run.json"
WINDOW_JOURNALS = f"window-*/{JOURNAL_FILE}"
TABLE_FILE = "results.csv"
NOTED_DOCUMENTS = 1000
STREAM_DOCUMENTS = 2000
"""Documents of a hub dataset to read when no number is given: enough to draw from, and hours less than all."""


def open_samples(data: DataSettings, tokenizer: Any, length: int, seed: int, progress: Progress) -> SampleSet:
    """Draw the search and held-out samples of a run.

    Raises:
        DataError: if there are too few documents that are long enough.
        SettingsError: if the length has no room for a needle, or for more than the last tokens, which alone count.
    """
    data.check_length(length)
    documents = read_documents(
        data.source, field=data.field, split=data.split, revision=data.revision, config=data.config, seed=seed
    )
    most = data.max_documents
    if most is None and not Path(data.source).exists():
        most = STREAM_DOCUMENTS
    drawn = draw_samples(
        documents,
        tokenizer,
        length,
        data.sample_count(length),
        data.held_out,
        seed,
        concatenate=data.concatenate,
        max_documents=most,
        progress=lambda read: progress.note(f"{read} documents read") if read % NOTED_DOCUMENTS == 0 else None,
    )
    if data.scores_all:
        return drawn

    def end_of(document: Sample) -> Sample:
        if data.last is None:
            return needle_sample(document, tokenizer, length, seed)
        return Sample(document.name, document.tokens, length - data.last)

    return SampleSet(tuple(map(end_of, drawn.search)), tuple(map(end_of, drawn.held_out)))


def refuse_other_run(folder: Path, resume: bool, journals: str = JOURNAL_FILE) -> None:
    """Raise RunExistsError if ``folder`` holds a run and this is not its resumption.

    Args:
        journals: pattern below ``folder`` of the journals that a run of this kind writes.
    """
    if folder.exists() and not folder.is_dir():
        raise RunExistsError(f"output {folder} is a file; give a folder")
    kept = (path for pattern in (JOURNAL_FILE, WINDOW_JOURNALS, FACTORS_FILE) for path in sorted(folder.glob(pattern)))
    found = next(kept, None)
    own = any(folder.glob(journals))
    if found is None or (resume and own):
        return
    why = f"holds another run ({found.relative_to(folder)})"
    if own:
        raise RunExistsError(f"output folder {folder} {why}; go on with it by --resume, or choose another")
    raise OtherRunError(f"output folder {folder} {why}; choose another", why)


@contextmanager
def open_scorer(
    folder: Path,
    settings: Mapping[str, Any],
    model: LoadedModel,
    samples: SampleSet,
    lengths: Sequence[int],
    execution: ExecutionSettings,
    together: int,
    resume: bool,
    progress: Progress,
) -> Iterator[Scorer]:
    """Open the journal in ``folder``, start the workers, and write ``run.json`` when all went well.

    Args:
        settings: all that decides the result; a resumed run must have the same.
        lengths: to which held-out samples will be cut.
        together: candidates that are scored on one sample before anything else is decided.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _open_journal(folder / JOURNAL_FILE, settings, resume) as journal:
        every: list[Sample] = [*samples.search, *held_out_samples(samples.held_out, lengths).values()]
        factory = ModelEvaluatorFactory(
            model.source, model.rope.policy.reference, {sample.digest: sample for sample in every}
        )
        started = time.perf_counter()
        on_gpu = model.source.on_gpu
        with make_pool(factory, execution, on_gpu, progress.note) as pool:
            # One row fills a CPU. Measuring it would only make equal runs differ in their last bits.
            measured_on = samples.search[0] if on_gpu else None
            batch = settle_batch(journal, pool, execution.batch, measured_on, together, progress.note)
            lengths_of = {sample.digest: len(sample.tokens) for sample in every}
            scorer = Scorer(pool, journal, progress, batch, lengths_of)
            yield scorer
            workers = pool.workers
        _write_run_file(folder, scorer, execution, workers, time.perf_counter() - started)


@contextmanager
def _open_journal(path: Path, settings: Mapping[str, Any], resume: bool) -> Iterator[Journal]:
    """The journal at ``path``; removed if no evaluation came to stand in it, so that the folder stays free."""
    journal = Journal.resume(path, settings) if resume and path.exists() else Journal.create(path, settings)
    with journal:
        try:
            yield journal
        finally:
            if all(event["kind"] == "batch" for event in journal.events):
                path.unlink()


def describe_samples(samples: SampleSet) -> dict[str, Any]:
    """Names and digests of the samples, for provenance and for the journal."""
    return {
        "search": [{"name": sample.name, "digest": sample.digest} for sample in samples.search],
        "held_out": [{"name": sample.name, "digest": sample.digest} for sample in samples.held_out],
    }


def sample_digests(samples: SampleSet) -> dict[str, list[str]]:
    """What a resumed run compares: the texts themselves, wherever they now lie."""
    return {
        "search": [sample.digest for sample in samples.search],
        "held_out": [sample.digest for sample in samples.held_out],
    }


def announce(model: LoadedModel, data: DataSettings, samples: SampleSet, length: int, progress: Progress) -> None:
    """Say what is about to be searched."""
    rope = model.rope
    progress.note(
        f"{model.source.name}: {model.config.model_type}, pretrained on {format_length(rope.original_length)} tokens, "
        f"present window {format_length(rope.window)}, {rope.rotary_dim // 2} rotated pairs; {model.source.dtype} on "
        f"{model.source.device}"
    )
    progress.note(
        f"{len(samples.search)} search and {len(samples.held_out)} held-out samples of {format_length(length)} tokens"
        + (f", scored by the perplexity{data.scored_part}" if data.scored_part else "")
    )


def _write_run_file(folder: Path, scorer: Scorer, execution: ExecutionSettings, workers: int, seconds: float) -> None:
    if not scorer.evaluated and (folder / RUN_FILE).exists():
        return  # resumed after its end: the record of the real run stays
    record = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "executor": execution.executor,
        "workers": workers,
        "threads_per_worker": execution.threads_per_worker,
        "batch": scorer.batch,
        "evaluations": scorer.evaluated,
        "wall_seconds": round(seconds, 3),
        "model_seconds": round(scorer.model_seconds, 3),
        "machine": machine(),
        "versions": versions(),
    }
    write_text_atomically(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")
