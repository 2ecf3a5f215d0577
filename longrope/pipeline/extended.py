"""The windows of a model as stages change them, also before they have run: work depends on windows, not on factors."""

from __future__ import annotations

from dataclasses import replace

from longrope.model.rope_config import ModelRope
from longrope.pipeline.stages import FinetuneStage, Scaling
from longrope.rope.attention_factor import su
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import abf, linear, ntk, yarn
from longrope.rope.policy import FactorSchedule, load_factors


def extended(rope: ModelRope, target: int) -> ModelRope:
    """A RoPE whose window is ``target`` tokens at least, by factors that stand for better ones."""
    if target <= rope.window:
        return rope
    factors = yarn(rope.present, target)
    factors = factors.replace(attention_factor=su(factors.ratio, factors.original_length))
    return replace(rope, policy=rope.extended_by(factors), window=target)


def with_training_windows(stage: FinetuneStage, rope: ModelRope) -> ModelRope:
    """The RoPE under which a stage trains.

    Args:
        rope: of the model, with the factors that were searched for it since.

    Raises:
        InvalidInputError: if the factors that the stage names cannot be used.
    """
    chosen = stage.factors
    if chosen is None:
        schedule = rope.schedule()
    else:
        given = scaled(rope, chosen, stage.settings.seq_length) if isinstance(chosen, Scaling) else load_factors(chosen)
        schedule = given if isinstance(given, FactorSchedule) else rope.extended_by(given)
    if not stage.keep_windows:
        schedule = FactorSchedule(schedule.windows[-1:])
    return replace(rope, policy=schedule, window=schedule.windows[-1].max_length)


def scaled(rope: ModelRope, scaling: Scaling, seq_length: int) -> RopeFactors:
    """The factors of a method that needs no search; those of abf over the model's plain RoPE, others over its present.

    Args:
        seq_length: the target, where ``scaling`` has none.

    Raises:
        InvalidInputError: if the target or the base is not above the model's own.
    """
    target_length = scaling.target_length or seq_length
    if scaling.method == "abf":
        assert scaling.rope_theta is not None
        return abf(rope.identity(), scaling.rope_theta, target_length)
    method = {"pi": linear, "ntk": ntk, "yarn": yarn}[scaling.method]
    return method(rope.present, target_length)
