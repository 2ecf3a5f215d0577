"""Which orders of stages make sense, as far as that can be told without the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longrope.evaluation.methods import LONG, LONGROPE, METHODS
from longrope.evaluation.settings import HarnessSettings
from longrope.exceptions import DataError
from longrope.lengths import format_length
from longrope.pipeline.stages import (
    EXPORTED,
    ORIGINAL,
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    ReadjustStage,
    Scaling,
    SearchStage,
    Stage,
)


def check_order(stages: Sequence[Stage]) -> None:
    """Raise DataError for the first stage that the ones before it leave nothing to do, or whose work would be lost."""
    reach = 0  # the window so far; 0 while that is the model's own, which is not known here
    untrained: SearchStage | None = None  # a search whose factors nothing was trained under
    used = True  # by an evaluation or an export
    readjusted: ReadjustStage | None = None
    exported = changed = False
    for stage in stages:

        def refuse(message: str, stage: Stage = stage) -> DataError:
            return DataError(f"{stage.where}: {stage.name} {message}")

        if isinstance(stage, (SearchStage, FinetuneStage)) and readjusted is not None:
            raise refuse(f"comes after {readjusted.name}, whose windows would be lost; readjust last")
        if isinstance(stage, SearchStage):
            target = stage.settings.target_length
            if target <= reach:
                raise refuse(
                    f"has target_length {format_length(target)}, and the stages before it reached "
                    f"{format_length(reach)}; lengths must grow"
                )
            if untrained is not None and not used:
                raise refuse(
                    f"makes nothing of the factors of {untrained.name}; put a finetune between them, or leave one away"
                )
            reach, untrained, used, changed = target, stage, False, True
        elif isinstance(stage, FinetuneStage):
            length = stage.settings.seq_length
            target = reach
            if isinstance(stage.factors, Scaling):
                target = stage.factors.target_length or length
                if target < reach:
                    raise refuse(
                        f"has factors for {format_length(target)}, and the stages before it reached "
                        f"{format_length(reach)}; lengths must grow"
                    )
            elif stage.factors is None and untrained is None:
                raise refuse("has no factors to train under; put a search before it, or give factors: {method: pi}")
            if not isinstance(stage.factors, str) and length > target:
                raise refuse(
                    f"has seq_length {format_length(length)}, longer than the {format_length(target)} that its factors "
                    "are for; train shorter segments, or search for a longer target"
                )
            if stage.factors is not None and untrained is not None and not used:
                raise refuse(f"has factors of its own, so that those of {untrained.name} are lost; leave one away")
            reach, untrained, used, changed = max(reach, target), None, True, True
        elif isinstance(stage, ReadjustStage):
            longest = max(stage.settings.windows, default=0)
            if not longest:
                raise refuse("has no windows; name at least one length, such as windows: [4k, 8k]")
            if reach and longest >= reach:
                raise refuse(
                    f"has the window {format_length(longest)}, which is not below the {format_length(reach)} that the "
                    "stages before it reached"
                )
            readjusted, used, changed = stage, True, True
        elif isinstance(stage, EvaluateStage):
            _check_evaluation(stage, reach, exported, refuse)
            used = used or stage.model != ORIGINAL
        elif isinstance(stage, ExportStage):
            if not changed:
                raise refuse("has nothing to write: no stage before it extends the model")
            short = stage.settings.short_window
            if short is not None and reach and short >= reach:
                raise refuse(
                    f"has short_window {format_length(short)}, which is not below the {format_length(reach)} that the "
                    "stages before it reached"
                )
            exported = used = True


def _check_evaluation(stage: EvaluateStage, reach: int, exported: bool, refuse: Callable[[str], DataError]) -> None:
    settings = stage.settings
    for method in settings.methods:
        if method not in METHODS:
            raise refuse(f"has the method {method!r}, which is not known; use {', '.join(METHODS)}")
    if stage.model == EXPORTED and not exported:
        raise refuse("measures the exported folder, and no export stands before it")
    for method in (LONGROPE, LONG):
        if stage.model == ORIGINAL and method in settings.methods:
            raise refuse(f"measures the original model, which has no factors; leave method {method} away")
    longest = max(settings.lengths, default=0)
    if isinstance(stage.suite, HarnessSettings):
        longest = max(stage.suite.max_length or 0, *stage.suite.lengths, 0)
    if stage.model != ORIGINAL and reach and longest > reach:
        raise refuse(
            f"measures {format_length(longest)}, over the {format_length(reach)} that the stages before it "
            "reached; leave that length away, or put the evaluation later"
        )
