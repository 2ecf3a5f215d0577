"""Perplexity on text that is never trained on, before and after, by the same scorer as a search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from longrope.data.documents import read_documents
from longrope.data.samples import Sample, draw_samples
from longrope.files import write_text_atomically
from longrope.finetune.settings import FinetuneSettings, HeldOutSettings
from longrope.model.attach import Attachment
from longrope.model.score import perplexity, score_blocks

HELD_OUT_FILE = "held_out.json"
_SETTINGS = "settings"


def held_out_lengths(settings: FinetuneSettings, original_length: int) -> tuple[int, ...]:
    """The lengths that are measured: those asked for, or the pretraining length and the training length."""
    return settings.held_out.lengths or tuple(sorted({original_length, settings.seq_length}))


def held_out_samples(settings: HeldOutSettings, tokenizer: Any, lengths: Sequence[int], seed: int) -> list[Sample]:
    """The same documents for every length, each as long as the longest.

    Raises:
        DataError: if there are too few documents of that length.
    """
    assert settings.source is not None
    documents = read_documents(settings.source, field=settings.field, split=settings.split, seed=seed)
    return list(draw_samples(documents, tokenizer, max(lengths), settings.samples, 0, seed).search)


class HeldOut(TrainerCallback):
    """Scores held-out samples when training begins and when it ends.

    The prefix of each sample of each length is scored with the factors that the policy has for that length: a short
    one by its own window.

    Args:
        attachment: the policy on the model.
        model: the transformers model, without what is wrapped around it.
        samples: at least as long as the longest length.
        seq_length: the length that is pinned while training.
        together: whether every process has to take part in every pass, because each holds a part of the weights.
        autocast: the dtype of the passes where weights have more bits than training computes with.
        settings: by which the samples were drawn; what was measured on others is forgotten.
        folder: of the run; its ``held_out.json`` is written.
    """

    def __init__(
        self,
        attachment: Attachment,
        model: Any,
        samples: Sequence[Sample],
        lengths: Sequence[int],
        seq_length: int,
        together: bool,
        autocast: torch.dtype | None,
        settings: HeldOutSettings,
        folder: Path,
    ) -> None:
        self._attachment = attachment
        self._model = model
        self._samples = samples
        self._lengths = lengths
        self._seq_length = seq_length
        self._together = together
        self._autocast = autocast
        self._settings = settings
        self._folder = folder
        # Where a process holds less than one key-value head, Ulysses changes these in training, and leaves them so.
        self._groups = {
            module: module.num_key_value_groups for module in model.modules() if hasattr(module, "num_key_value_groups")
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 and "before" not in read_held_out(self._folder, self._settings):
            self._measure("before", args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # a run that was stopped has no end to measure
            self._measure("after", args, state)

    def _measure(self, name: str, args: Any, state: Any) -> None:
        training = self._model.training
        self._model.eval()
        for module, groups in self._groups.items():
            module.num_key_value_groups = groups
        passes = [(length, index) for length in sorted(self._lengths) for index in range(len(self._samples))]
        mine = passes if self._together else passes[args.process_index :: args.world_size]
        device = args.device.type
        try:
            with torch.autocast(device, dtype=self._autocast, enabled=self._autocast is not None):
                scored = [(length, index, self._score(length, index)) for length, index in mine]
        finally:
            self._attachment.pin(self._seq_length)
            self._model.train(training)
        if not self._together:
            scored = _gathered(scored)
        if state.is_world_process_zero:
            sums: dict[int, list[float]] = {length: [0.0] * len(self._samples) for length in self._lengths}
            for length, index, nll in scored:
                sums[length][index] = nll
            record = read_held_out(self._folder, self._settings)
            record[name] = {
                str(length): perplexity(sum(nlls), len(nlls) * (length - 1)) for length, nlls in sorted(sums.items())
            }
            text = json.dumps({_SETTINGS: asdict(self._settings), **record}, indent=2)
            write_text_atomically(self._folder / HELD_OUT_FILE, text + "\n")
            described = ", ".join(f"{length}: {value:.3f}" for length, value in record[name].items())
            print(f"held-out perplexity {name}: {described}", flush=True)

    def _score(self, length: int, index: int) -> float:
        factors = self._attachment.policy.factors_for(length)
        tokens = self._samples[index].tokens[:length]
        return float(score_blocks(self._model, tokens, [factors], attachment=self._attachment).sum())


def read_held_out(folder: Path, settings: HeldOutSettings) -> dict[str, dict[str, float]]:
    """Perplexity by length (as text), ``before`` and ``after``, as far as they were measured by these settings."""
    file = folder / HELD_OUT_FILE
    if not file.exists():
        return {}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    same: bool = record.pop(_SETTINGS, None) == json.loads(json.dumps(asdict(settings)))
    return record if same else {}


def _gathered(scored: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    if not torch.distributed.is_initialized():
        return scored
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, scored)
    return [entry for part in parts for entry in part]
