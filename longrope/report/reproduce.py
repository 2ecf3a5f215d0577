"""The command line that makes a run again, from what the run recorded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longrope.demo import model_folder
from longrope.finetune.settings import FinetuneSettings
from longrope.lengths import format_length
from longrope.runs.command import option, options_of
from longrope.search.settings import SEARCHED_ATTENTION, AlgorithmSettings, DataSettings

OUTPUT = ["--output", "NEW_FOLDER"]


def search_command(provenance: Mapping[str, Any]) -> str:
    """Of a search or a readjustment, whose provenance is that of its factors."""
    settings, data = provenance["settings"], {**provenance["data"]}
    data.pop("drawn", None)
    readjusted = "window" in settings
    target = settings["window" if readjusted else "target_length"]
    given = _algorithm(settings, target)
    usual = AlgorithmSettings(algorithm=settings["algorithm"]).n_hat_choices
    if tuple(settings["n_hat_choices"]) != tuple(sorted({0 if n == 1 else n for n in usual})):
        given["n_hat"] = settings["n_hat_choices"]
    given["lambda_max"] = settings["lambda_max"]
    # What a readjustment was told is not recorded, but what came of it is: a factor, or a search for one.
    told = SEARCHED_ATTENTION if "attention_span" in settings else settings["attention_factor"]
    given["attention_factor"] = settings.get("attention_factor_rule", told)
    if not readjusted:
        words = ["search", _model(provenance), "--target-length", format_length(target)]
    else:
        words = ["readjust", _model(provenance), "--windows", format_length(target)]
    words += options_of(DataSettings(**data), {"source": "data"})
    for name, value in given.items():
        words += option(name.replace("_", "-"), value)
    words += _numeric(settings)
    revision = provenance["model"].get("revision")
    words += ["--model-revision", str(revision)] if revision else []
    return _joined([*words, "--seed", str(provenance["seed"]), *OUTPUT])


def _algorithm(settings: Mapping[str, Any], target: int) -> dict[str, Any]:
    """What was chosen of the algorithm and its sizes, by the names of options."""
    algorithm = settings["algorithm"]
    usual = AlgorithmSettings(algorithm=algorithm)
    # The sizes of the levels are recorded, too, but cannot be chosen.
    sizes = {name: value for name, value in asdict(usual.sizes(target)).items() if hasattr(usual, name)}
    given = {"algorithm": algorithm}  # named even where it is the default, which may be another one some day
    given |= {name: settings[name] for name in sizes if settings.get(name) != sizes[name]}
    if bool(settings.get("racing")) != usual.races:
        given["racing"] = not usual.races
    return given | {name: settings[name] for name in ("patience", "max_gpu_hours") if settings.get(name)}


def finetune_command(settings: FinetuneSettings, folder: Path) -> str:
    """Of a fine-tuning run; its folder keeps a copy of its factors."""
    names = {"revision": "model-revision", "learning_rate": "lr"}
    left = ("model", "output", "factors", "betas", "trust_remote_code")
    words = ["finetune", _shortened(settings.model), "--factors", str(folder / "factors.json")]
    words += options_of(settings, names, left)
    if settings.betas != (0.9, 0.95):
        words += ["--betas", *map(str, settings.betas)]
    words += options_of(
        settings.adapter,
        {"rank": "lora-rank", "alpha": "lora-alpha", "targets": "lora-targets"},
        ("train_embeddings_and_norms",),
    )
    words += [] if settings.adapter.train_embeddings_and_norms else ["--plain-lora"]
    words += options_of(settings.memory, {"checkpoint_activations": "checkpointing"})
    held_out = {"source": "held-out", "lengths": "held-out-lengths", "samples": "held-out-samples"}
    words += options_of(settings.held_out, held_out, ("field", "split"))
    words += ["--trust-remote-code"] if settings.trust_remote_code else []
    return _joined([*words, *OUTPUT])


def evaluation_command(recorded: Sequence[str] | None) -> str | None:
    """Of an evaluation, which records its own; None for one that does not."""
    if not recorded:
        return None
    name, *words = (str(word) for word in recorded)
    return _joined([*words, *OUTPUT], name)


def _numeric(settings: Mapping[str, Any]) -> list[str]:
    """What decides the last bits of a score."""
    words = ["--dtype", str(settings["dtype"])]
    words += ["--attn", settings["attention"]] if settings["attention"] != "sdpa" else []
    threads = settings["threads_per_worker"]
    words += ["--threads-per-worker", str(threads)] if threads != 1 else []
    batch = settings.get("batch")  # unknown of runs from before there were batches
    # On a GPU 1 is said, too: what is not given is measured there.
    return words + (["--batch", str(batch)] if batch and (batch > 1 or settings.get("device") != "cpu") else [])


def _model(provenance: Mapping[str, Any]) -> str:
    return _shortened(str(provenance["model"]["name"]))


def _shortened(name: str) -> str:
    """The embedded model has a name that is good on every machine."""
    embedded = model_folder().parts[-3:]
    return "demo" if Path(name).parts[-3:] == embedded else name


def _joined(words: Sequence[str], name: str = "longrope") -> str:
    """One option a line, as people paste it."""
    lines, line = [], name
    for word in words:
        if word.startswith("--"):
            lines.append(line)
            line = f"    {word}"
        else:
            line += f" {shlex.quote(word)}"
    return " \\\n".join([*lines, line])
