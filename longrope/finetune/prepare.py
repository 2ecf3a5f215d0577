"""The model as it is trained: under its new factors, with what saves memory, and with adapters around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from longrope.finetune.activation_checkpointing import checkpoint_activations
from longrope.finetune.adapters import add_adapters, quantization
from longrope.finetune.attention_projections import train_only_attention
from longrope.finetune.precision import Precision
from longrope.finetune.settings import FinetuneSettings
from longrope.finetune.shifted_sparse import ShiftedSparseAttention, use_shifted_sparse
from longrope.finetune.tiled_loss import tile_loss
from longrope.finetune.tiled_mlp import tile_mlp
from longrope.finetune.window_passes import WindowPasses
from longrope.model.attach import Attachment, attach
from longrope.model.load import ModelSource, without_known_keys
from longrope.rope.policy import RopePolicy


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to be trained.

    Attributes:
        model: the transformers model.
        trained: the same, or the adapters around it.
        attachment: the policy on it, pinned to the training length.
        passes: of segments under their windows.
        sparse: shifted sparse attention, where it was asked for.
    """

    model: Any
    trained: Any
    attachment: Attachment
    passes: WindowPasses
    sparse: ShiftedSparseAttention | None = None


def prepare_model(
    source: ModelSource, settings: FinetuneSettings, policy: RopePolicy, precision: Precision, sp_rank: int = 0
) -> PreparedModel:
    """Load the model and put on it what the settings ask for; see :func:`extend_model`.

    Args:
        source: with the attention kernel of the run.
        sp_rank: number of this process among those that share a sequence.

    Raises:
        SettingsError: if something that was asked for is not installed, or the model cannot have it.
        UnsupportedModelError: if the weights cannot be loaded.
    """
    options: dict[str, Any] = {}
    if settings.method == "qlora":
        options["quantization_config"] = quantization(settings.method, precision.weights, settings.zero or 0)
    model = source.load_pretrained(dtype=precision.weights, attn_implementation=source.attention, **options)
    return extend_model(model, settings, policy, precision, sp_rank)


def extend_model(
    model: Any, settings: FinetuneSettings, policy: RopePolicy, precision: Precision, sp_rank: int = 0
) -> PreparedModel:
    """Put on a loaded model what the settings ask for.

    Until a pass chooses another, the window is that of the whole segment, whatever part of it this process sees.

    Raises:
        SettingsError: if something that was asked for is not installed, or the model cannot have it.
    """
    attachment = attach(model, policy)
    passes = WindowPasses(model, attachment, settings.seq_length)
    memory, sparse = settings.memory, None
    if settings.attention == "shifted-sparse":
        length, group = settings.seq_length, settings.group
        sparse = use_shifted_sparse(model, length, group, sp_rank=sp_rank, sp_size=settings.sp)
    tile_loss(model, memory.tile_loss)
    if memory.tile_mlp:
        tile_mlp(model, memory.tile_mlp)
    if memory.checkpoint_activations:
        checkpoint_activations(model, memory.offload_activations)
    trained = model
    if settings.method == "attention":
        train_only_attention(model)
    elif settings.adapts:
        kept = torch.float32 if settings.zero == 0 else precision.weights
        trained = add_adapters(model, settings.adapter, settings.method, trained_dtype=kept)
    return PreparedModel(model, trained, attachment, passes, sparse)


def rehearse(config: Any, settings: FinetuneSettings, policy: RopePolicy, precision: Precision) -> None:
    """Refuse what the model cannot have before its weights are loaded: the same is put on a model without any.

    Args:
        config: of a supported architecture; it is not changed.

    Raises:
        SettingsError: if something that was asked for is not installed, or the model cannot have it.
        UnsupportedModelError: likewise.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with without_known_keys():
        own = AutoConfig.for_model(**config.to_dict())  # of transformers' own class, also if code came with the model
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(own, dtype=precision.weights, attn_implementation="sdpa")
    prepared = extend_model(model, settings, policy, precision)
    if prepared.sparse is not None:  # which stands in a table that all models share
        prepared.sparse.remove()
