"""The published methods for a model and a target length, composed with the model's present factors."""

from __future__ import annotations

from longrope.model.rope_config import ModelRope
from longrope.rope.methods import DynamicNTK, linear, ntk, yarn
from longrope.rope.policy import FixedFactors, RopePolicy

PUBLISHED = ("none", "pi", "ntk", "dynamic-ntk", "yarn")


def published_policies(rope: ModelRope, target_length: int) -> dict[str, RopePolicy]:
    """none, PI, NTK, dynamic NTK and YaRN by name.

    On a plain model these are the published methods; on a model that is already scaled they are composed with its
    present factors for the ratio that remains, and ``none`` is the model as it is. Dynamic NTK is that of the YaRN
    paper (arXiv 2309.00071, section 3.3), whose scale is the length over the present window.
    """
    present = rope.present
    return {
        "none": rope.policy,
        "pi": FixedFactors(linear(present, target_length)),
        "ntk": FixedFactors(ntk(present, target_length)),
        "dynamic-ntk": DynamicNTK(present),
        "yarn": FixedFactors(yarn(present, target_length)),
    }
