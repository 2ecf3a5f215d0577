"""What a model's config says about its RoPE: the present policy, and the lengths it was trained and meant for.

A model that is already scaled is understood, so that a search starts from its present factors: our own schedule in
``longrope.json``, or a config with rope type llama3, yarn, linear, dynamic or longrope. Frequencies are read through
transformers' own functions and kept as lambdas over plain ``rope_theta``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.exceptions import FactorsError, UnsupportedModelError
from longrope.lengths import format_length
from longrope.model.architectures import GLOBAL_LAYERS, Architecture, architecture_for
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import DynamicNTK
from longrope.rope.policy import FactorSchedule, FixedFactors, RopePolicy, Window, load_factors
from longrope.rope.rotary import inv_freq_float32

SCHEDULE_FILE = "longrope.json"
_NATIVE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass(frozen=True)
class ModelRope:
    """The RoPE of one model.

    Attributes:
        architecture: its row in the table.
        policy: the factors it uses at present, at every length.
        window: the longest sequence its present policy is meant for, in tokens.
    """

    architecture: Architecture
    policy: RopePolicy
    window: int

    @property
    def present(self) -> RopeFactors:
        """The factors of a sequence that fills the present window: where a search starts from."""
        return self.policy.factors_for(self.window)

    @property
    def original_length(self) -> int:
        """Tokens the model was pretrained on."""
        return self.policy.reference.original_length

    @property
    def rope_theta(self) -> float:
        return self.policy.reference.rope_theta

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of a head."""
        return self.policy.reference.rotary_dim

    @property
    def is_scaled(self) -> bool:
        """Whether the model has left plain RoPE already."""
        return self.present.lambdas != self.identity().lambdas or self.present.attention_factor != 1.0

    def identity(self) -> RopeFactors:
        """Plain RoPE for this model: every lambda 1."""
        return RopeFactors.identity(self.rope_theta, self.rotary_dim, self.original_length)

    def schedule(self) -> FactorSchedule:
        """The present policy as a schedule, at its present windows."""
        if isinstance(self.policy, FactorSchedule):
            return self.policy
        return FactorSchedule((Window(self.window, self.present),))

    def extended_by(self, factors: RopeFactors) -> FactorSchedule:
        """The present windows with the factors added at their target length, as a rule on top."""
        return self.schedule().with_window(factors)


def read_rope(config: Any, folder: str | Path | None = None) -> ModelRope:
    """Understand a transformers config, and the ``longrope.json`` beside it if there is one.

    Args:
        config: a transformers v5 config.
        folder: where the model lies; its ``longrope.json`` says more than the config can and is believed first.

    Raises:
        UnsupportedModelError: if the model has no RoPE, or one that is not understood.
        FactorsError: if ``longrope.json`` belongs to another model.
    """
    architecture = architecture_for(config)
    parameters = architecture.rope_parameters_of(config)
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedModelError(
            f"this {config.model_type!r} config has a RoPE of its own for each layer type, which models of that type "
            "do not have"
        )
    kind = parameters.get("rope_type", "default")
    if kind not in _NATIVE_TYPES:
        raise UnsupportedModelError(f"rope type {kind!r} is not understood; understood: {', '.join(_NATIVE_TYPES)}")

    rope_theta = float(parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    longest = int(config.max_position_embeddings)

    schedule_file = Path(folder) / SCHEDULE_FILE if folder is not None else None
    if schedule_file is not None and schedule_file.exists():
        schedule = load_factors(schedule_file)
        if not isinstance(schedule, FactorSchedule):
            raise FactorsError(f"{schedule_file} holds factors, expected a schedule; was it written by longrope?")
        schedule.reference.check_fits(rope_theta, rotary_dim)
        return ModelRope(architecture, schedule, schedule.windows[-1].max_length)

    identity = RopeFactors.identity(rope_theta, rotary_dim, longest)
    if kind == "default":
        return ModelRope(architecture, FixedFactors(identity), longest)
    if kind == "dynamic":  # grows from max_position_embeddings, whatever original length the config names
        return ModelRope(architecture, DynamicNTK(identity, factor=float(parameters["factor"])), longest)

    factor = parameters.get("factor")
    # The config's top-level original length wins over that of the parameters, as in transformers, except where the
    # parameters are nested by layer type.
    nested = architecture.local_layers == "own"
    original = int(
        (not nested and getattr(config, "original_max_position_embeddings", None))
        or parameters.get("original_max_position_embeddings")
        or (longest / float(factor) if factor else longest)
    )
    if kind == "longrope":
        schedule = _longrope_schedule(config, architecture, rope_theta, rotary_dim, original, longest)
        return ModelRope(architecture, schedule, longest)
    inv_freq, attention_factor = _transformers_frequencies(config, architecture, kind, longest)
    lambdas = _lambdas(inv_freq, identity)
    # Llama 3.2 has factor 32 over 8k and a window of 128k, so that its factor is no ratio of lengths.
    window = longest if kind == "llama3" else max(longest, round(original * float(factor or 1)))
    present = RopeFactors(lambdas, rope_theta, rotary_dim, original, window, attention_factor=attention_factor)
    return ModelRope(architecture, FixedFactors(present), window)


def check_attention_span(config: Any, length: int) -> None:
    """Refuse sequences that the model's attention cannot see as a whole.

    Beyond a sliding window the distances that factors are searched for never occur, and the mask that transformers
    builds for it grows with the square of the length.

    Args:
        config: a transformers v5 config.
        length: tokens of the longest sequence to be scored.

    Raises:
        UnsupportedModelError: if a layer's sliding window is shorter than ``length``.
    """
    span = attention_span(config)
    if span is None or length <= span:
        return
    change = '"sliding_window" to null'
    if hasattr(config, "use_sliding_window"):
        change = '"use_sliding_window" to false and remove "layer_types"'
    raise UnsupportedModelError(
        f"model type {config.model_type!r} attends to the last {span} tokens only, fewer than the "
        f"{format_length(length)} asked for; set {change} in its config.json"
    )


def attention_span(config: Any) -> int | None:
    """Tokens that a transformers v5 config lets attention see; None for all.

    Layers that are short-sighted by design, beside others that see everything, limit nothing.
    """
    span: int | None = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    if architecture_for(config).local_layers is not None and GLOBAL_LAYERS in (layer_types or ()):
        return None
    return span


def _longrope_schedule(
    config: Any, architecture: Architecture, rope_theta: float, rotary_dim: int, original: int, longest: int
) -> FactorSchedule:
    parameters = architecture.rope_parameters_of(config)
    _, attention_factor = _transformers_frequencies(config, architecture, "longrope", longest)
    windows = [
        Window(
            length,
            RopeFactors(
                tuple(parameters[name]), rope_theta, rotary_dim, original, length, attention_factor=attention_factor
            ),
        )
        for name, length in (("short_factor", original), ("long_factor", longest))
    ]
    # A config may give equal lengths, for models that were trained with one list only.
    return FactorSchedule(tuple(windows if original < longest else windows[:1]))


def _lambdas(inv_freq: npt.NDArray[np.float32], identity: RopeFactors) -> tuple[float, ...]:
    """What divides the plain frequencies, both in float32, so that pairs left alone have exactly 1.

    Where the quotients are equal but for the rounding, they must not count as falling.
    """
    plain = inv_freq_float32(identity).numpy().astype(np.float64)
    lambdas = plain / inv_freq.astype(np.float64)
    rising = np.maximum.accumulate(lambdas)
    return tuple(np.where(rising <= lambdas * (1 + 1e-6), rising, lambdas).tolist())


def _transformers_frequencies(
    config: Any, architecture: Architecture, kind: str, length: int
) -> tuple[npt.NDArray[np.float32], float]:
    """Inverse frequencies (rotary_dim / 2,) in float32 and the attention factor, from transformers itself."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    layer_type = GLOBAL_LAYERS if architecture.local_layers == "own" else None
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, device=None, seq_len=length, layer_type=layer_type)
    return inv_freq.numpy(), float(attention_factor)
