"""A run: the folder, journal, samples and workers that searches and readjustments share."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope import __version__
from longrope.data.documents import read_documents
from longrope.data.samples import Sample, SampleSet, draw_samples
from longrope.exceptions import RunExistsError
from longrope.files import write_text_atomically
from longrope.lengths import format_length
from longrope.model.load import ModelSource, check_attention, fingerprint, resolve_source
from longrope.model.rope_config import ModelRope, read_rope
from longrope.search.comparison import held_out_samples
from longrope.search.evaluation import EvaluationPool
from longrope.search.evaluator import ModelEvaluatorFactory
from longrope.search.journal import Journal
from longrope.search.progress import Progress
from longrope.search.scorer import Scorer
from longrope.search.settings import DataSettings, ExecutionSettings

JOURNAL_FILE = "evaluations.jsonl"
FACTORS_FILE = "factors.json"
RUN_FILE = "run.json"
WINDOW_JOURNALS = f"window-*/{JOURNAL_FILE}"
TABLE_FILE = "results.csv"
NOTED_DOCUMENTS = 1000
STREAM_DOCUMENTS = 2000
"""Documents of a hub dataset to read when no number is given: enough to draw from, and hours less than all."""


@dataclass(frozen=True)
class LoadedModel:
    """What the driver knows of a model: everything but its weights."""

    source: ModelSource
    rope: ModelRope
    tokenizer: Any
    fingerprint: str
    config: Any

    def describe(self) -> dict[str, Any]:
        """Which model this is, for provenance."""
        return {
            "name": self.source.name,
            "revision": self.source.revision,
            "model_type": self.config.model_type,
            "fingerprint": self.fingerprint,
        }


def open_model(name: str, execution: ExecutionSettings, revision: str | None = None) -> LoadedModel:
    """Read the config, the RoPE and the tokenizer of a model."""
    source = resolve_source(
        name,
        dtype=execution.dtype,
        device=execution.device,
        attention=execution.attention,
        trust_remote_code=execution.trust_remote_code,
        revision=revision,
        gpus_per_worker=1 if execution.gpus_per_worker is None else execution.gpus_per_worker,
        elsewhere=execution.ray_address is not None,
    )
    folder = source.folder()
    config = source.load_config()
    check_attention(config, source.attention)  # here, before evaluators start
    rope = read_rope(config, folder)
    return LoadedModel(source, rope, source.load_tokenizer(), fingerprint(folder), config)


def open_samples(data: DataSettings, tokenizer: Any, length: int, seed: int, progress: Progress) -> SampleSet:
    """Draw the search and held-out samples of a run."""
    documents = read_documents(
        data.source, field=data.field, split=data.split, revision=data.revision, config=data.config, seed=seed
    )
    most = data.max_documents
    if most is None and not Path(data.source).exists():
        most = STREAM_DOCUMENTS
    return draw_samples(
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
    if found is not None and not (resume and own):
        raise RunExistsError(
            f"output folder {folder} holds another run ({found.relative_to(folder)}); "
            + ("go on with it by --resume, or choose another" if own else "choose another")
        )


@contextmanager
def open_scorer(
    folder: Path,
    settings: Mapping[str, Any],
    model: LoadedModel,
    samples: SampleSet,
    lengths: Sequence[int],
    execution: ExecutionSettings,
    resume: bool,
    progress: Progress,
) -> Iterator[Scorer]:
    """Open the journal in ``folder``, start the workers, and write ``run.json`` when all went well.

    Args:
        settings: all that decides the result; a resumed run must have the same.
        lengths: to which held-out samples will be cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _open_journal(folder / JOURNAL_FILE, settings, resume) as journal:
        every: list[Sample] = [*samples.search, *held_out_samples(samples.held_out, lengths).values()]
        factory = ModelEvaluatorFactory(
            model.source, model.rope.policy.reference, {sample.digest: sample.tokens for sample in every}
        )
        started = time.perf_counter()
        with make_pool(factory, execution, model.source.device in ("cuda", "auto"), progress) as pool:
            scorer = Scorer(pool, journal, progress)
            yield scorer
            workers = pool.workers
        _write_run_file(folder, scorer, execution, workers, time.perf_counter() - started)


@contextmanager
def _open_journal(path: Path, settings: Mapping[str, Any], resume: bool) -> Iterator[Journal]:
    """The journal at ``path``; removed if nothing came to stand in it, so that the folder stays free."""
    journal = Journal.resume(path, settings) if resume and path.exists() else Journal.create(path, settings)
    with journal:
        try:
            yield journal
        finally:
            if not journal.events:
                path.unlink()


def make_pool(
    factory: ModelEvaluatorFactory, execution: ExecutionSettings, on_gpu: bool, progress: Progress
) -> EvaluationPool:
    """The pool the settings name."""
    workers = execution.worker_count(on_gpu)
    options: dict[str, Any] = {
        "threads": execution.threads_per_worker,
        "gpus_per_worker": execution.gpus(on_gpu),
        "events": progress.note,
    }
    if execution.executor == "ray":
        from longrope.search.ray_pool import RayPool

        return RayPool(factory, workers, address=execution.ray_address, **options)
    from longrope.search.local_pool import LocalPool

    assert workers is not None, "only a cluster is counted later"
    return LocalPool(factory, workers, **options)


def numeric_settings(model: LoadedModel, execution: ExecutionSettings) -> dict[str, Any]:
    """What decides the bits of a score beside the candidate and the sample."""
    return {
        "dtype": model.source.dtype,
        "device": "cuda" if model.source.device == "auto" else model.source.device.split(":")[0],
        "attention": model.source.attention,
        "threads_per_worker": execution.threads_per_worker,
    }


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    import numpy
    import torch
    import transformers

    return {
        "longrope": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }


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


def announce(model: LoadedModel, samples: SampleSet, length: int, progress: Progress) -> None:
    """Say what is about to be searched."""
    rope = model.rope
    progress.note(
        f"{model.source.name}: {model.config.model_type}, pretrained on {format_length(rope.original_length)} tokens, "
        f"present window {format_length(rope.window)}, {rope.rotary_dim // 2} rotated pairs; {model.source.dtype} on "
        f"{model.source.device}"
    )
    progress.note(
        f"{len(samples.search)} search and {len(samples.held_out)} held-out samples of {format_length(length)} tokens"
    )


def _write_run_file(folder: Path, scorer: Scorer, execution: ExecutionSettings, workers: int, seconds: float) -> None:
    if not scorer.evaluated and (folder / RUN_FILE).exists():
        return  # resumed after its end: the record of the real run stays
    record = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "executor": execution.executor,
        "workers": workers,
        "threads_per_worker": execution.threads_per_worker,
        "evaluations": scorer.evaluated,
        "wall_seconds": round(seconds, 3),
        "model_seconds": round(scorer.model_seconds, 3),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
        },
        "versions": versions(),
    }
    write_text_atomically(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")
