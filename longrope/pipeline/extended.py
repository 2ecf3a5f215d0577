"""What stages make of a model's RoPE, before they have run: work depends on windows, and not on their factors."""

from __future__ import annotations

from longrope.model.rope_config import ModelRope
from longrope.pipeline.stages import FinetuneStage, Scaling
from longrope.rope.attention_factor import su
from longrope.rope.methods import yarn
from longrope.rope.policy import FactorSchedule, load_factors


def extended(rope: ModelRope, target: int) -> ModelRope:
    """A RoPE whose window is ``target`` tokens at least, by factors that stand for better ones."""
    if target <= rope.window:
        return rope
    factors = yarn(rope.present, target)
    factors = factors.replace(attention_factor=su(factors.ratio, factors.original_length))
    return ModelRope(rope.architecture, rope.extended_by(factors), target)


def rope_of_training(stage: FinetuneStage, rope: ModelRope) -> ModelRope:
    """The RoPE under which a stage trains.

    Raises:
        FactorsError: if the factors that it names cannot be used.
    """
    if isinstance(stage.factors, str):
        given = load_factors(stage.factors)
        schedule = given if isinstance(given, FactorSchedule) else rope.extended_by(given)
        return ModelRope(rope.architecture, schedule, schedule.windows[-1].max_length)
    target = stage.factors.target_length if isinstance(stage.factors, Scaling) else None
    return extended(rope, target or stage.settings.seq_length)
