"""Small finished runs of every kind, written by the code that writes real ones; not to be changed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_search
from tiny_search import search_in_process

pytest.importorskip("matplotlib", reason="reports need matplotlib")

from longrope.evaluation import run as evaluation
from longrope.evaluation.open_passkey import open_passkey
from longrope.evaluation.open_perplexity import open_perplexity
from longrope.evaluation.settings import EvaluationSettings, PasskeySettings, PerplexitySettings
from longrope.finetune.run_record import lock_of, open_run
from longrope.finetune.settings import FinetuneSettings, HeldOutSettings
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

STEPS = 80


@pytest.fixture(scope="session")
def search_run(model_folder: Path, documents_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 candidates to 512 tokens, two blocks, of which the fifth evaluation failed."""
    folder = tmp_path_factory.mktemp("runs") / "search"
    asked: list[object] = []

    def fails(task: object) -> str | None:
        asked.append(task)
        return "out of <b>memory</b>" if len(asked) == 15 else None

    search_in_process(tiny_search.settings(model_folder, documents_file, folder, 512), fails)
    return folder


def evaluate(folder: Path, settings: dict[str, Any], chosen: Any, open_suite: Any) -> Path:
    """Run an evaluation in this process."""
    given = EvaluationSettings(output=str(folder), **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "make_pool", lambda factory, *others: tiny_search.InProcessPool(factory))
        command = ["longrope", "evaluate", "a suite", "--lengths", "64"]
        evaluation.evaluate(given, partial(open_suite, chosen, given.lengths, given.seed), command=command)
    return folder


@pytest.fixture(scope="session")
def evaluation_settings(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of three methods."""
    factors = tmp_path_factory.mktemp("factors") / "factors.json"
    yarn(RopeFactors.identity(10000.0, 16, 64), 512).save(factors)
    return {"model": str(model_folder), "factors": str(factors), "methods": ("none", "pi", "longrope")}


@pytest.fixture(scope="session")
def perplexity_run(
    evaluation_settings: dict[str, Any], documents_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Three methods at three lengths on three documents."""
    chosen = PerplexitySettings(source=str(documents_file), samples=3)
    folder = tmp_path_factory.mktemp("runs") / "perplexity"
    return evaluate(folder, {**evaluation_settings, "lengths": (64, 128, 256)}, chosen, open_perplexity)


@pytest.fixture(scope="session")
def passkey_run(evaluation_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods at two lengths, two trials each."""
    folder = tmp_path_factory.mktemp("runs") / "passkey"
    return evaluate(folder, {**evaluation_settings, "lengths": (250, 300)}, PasskeySettings(trials=2), open_passkey)


@pytest.fixture(scope="session")
def finetune_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose record is the real one, and whose figures are made up in the form that the monitor writes."""
    folder = tmp_path_factory.mktemp("runs") / "finetune"
    held_out = HeldOutSettings(source="books/<novels>", lengths=(64, 128))
    settings = FinetuneSettings(
        model="owner/tiny", factors="f.json", data="d.jsonl", output=str(folder), seq_length=128, steps=STEPS,
        held_out=held_out,
    )  # fmt: skip
    lock = lock_of(settings)
    open_run(settings, "weights", {"longrope": "0.1"}, False, lock)
    lock.release()
    lines = []
    for step in range(1, STEPS + 1):
        line = {"step": step, "loss": 3 + 1 / step, "learning_rate": 2e-5 * step / STEPS, "peak_memory_gib": 1.5}
        lines.append(line if step == 1 else {**line, "tokens_per_second": 900.0 + step})
    lines.append({"step": STEPS, "train_runtime": 61.0})
    torn = '{"step": 81, "lo'
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    from dataclasses import asdict

    measured = {"before": {"64": 9.0, "128": 12.0}, "after": {"64": 9.5, "128": 10.0}}
    (folder / "held_out.json").write_text(json.dumps({"settings": asdict(held_out), **measured}))
    (folder / "model").mkdir()
    return folder
