"""Write a fine-tuned model that is in memory as a folder with its factors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longrope.exceptions import SettingsError
from longrope.export.card import Origin
from longrope.export.huggingface import Exported, export_folder
from longrope.export.kept_weights import keep_untrained
from longrope.export.weights import NewWeights, write_weights
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, FixedFactors, RopePolicy


def save_extended(
    model: Any,
    source: ModelSource,
    policy: RopePolicy | RopeFactors,
    output: str | Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
    trained: Collection[str] | None = None,
    told: str = "The weights were fine-tuned under the factors.",
    command: str = "finetune ...",
) -> Exported:
    """Write ``output`` as :func:`~longrope.export.huggingface.export_folder` does, with the weights of ``model``.

    Factors with n_hat > 0 are kept: the model was trained under them. The folder then has the modeling file that
    computes them with ``trust_remote_code``, and the notes say what plain transformers does instead.

    Args:
        model: a transformers causal language model, not wrapped by anything; a policy may be attached.
        source: what it was loaded from; gives config, tokenizer and all files but the weights.
        policy: what it was trained under.
        state_dict: its weights by name, for example gathered from partitions; its own where not given.
        dtype: of the written weights; that of the source's config where not given, or else the model's.
        trained: what names of trained weights end with; all others are taken from the files of ``source``, which
            training in another dtype may have rounded. None where all were trained.
        told: a sentence of the model card on where the weights come from.
        command: the command line, after ``longrope``, that makes the folder again.

    Raises:
        FactorsError: if the policy does not fit the model.
        SettingsError: if the policy is neither factors nor a schedule.
        RunExistsError: if ``output`` exists and is not empty.
    """
    schedule = as_schedule(policy, source)
    code = any(window.factors.n_hat for window in schedule.windows)
    if code:
        source = replace(source, trust_remote_code=False)  # transformers' own class of config, which the file needs
    weights: Mapping[str, torch.Tensor] = model.state_dict() if state_dict is None else state_dict
    missing = sorted(set(model.state_dict()) - set(weights) - set(model.all_tied_weights_keys))
    assert not missing, f"the given weights lack {missing[0]}"
    dtype = dtype or _saved_dtype(source) or model.dtype

    def write(folder: Path) -> None:
        write_weights(model, folder, weights, dtype)
        if trained is not None:
            keep_untrained(folder, source.folder(), trained)

    new = NewWeights(write=write, dtype=dtype)
    origin = Origin(source=source, told=told, command=command)
    return export_folder(source, schedule, output, code=code, new_weights=new, origin=origin)


def as_schedule(policy: RopePolicy | RopeFactors, source: ModelSource) -> FactorSchedule:
    """A policy as what longrope.json holds; factors of one window join the present windows of the model.

    Raises:
        SettingsError: if the policy is neither factors nor a schedule.
    """
    if isinstance(policy, FixedFactors):
        policy = policy.factors
    if isinstance(policy, RopeFactors):
        return read_rope(source.load_config(), source.folder(weights=False)).extended_by(policy)
    if not isinstance(policy, FactorSchedule):
        raise SettingsError(f"{type(policy).__name__} cannot be saved; give factors or a schedule")
    return policy


def _saved_dtype(source: ModelSource) -> torch.dtype | None:
    """The dtype that the config of a model says its weights are saved in."""
    dtype = getattr(source.load_config(), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None
