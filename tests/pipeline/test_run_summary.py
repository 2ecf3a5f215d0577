"""A run told in Markdown for the card of its model."""

from __future__ import annotations

from longrope.pipeline.state import DONE, RunState, StageState
from longrope.pipeline.summary import results_section


def evaluation(of: str, perplexities: dict[int, float | None]) -> StageState:
    """A finished measurement of perplexity."""
    table = [{"method": "longrope", "length": length, "perplexity": value} for length, value in perplexities.items()]
    return StageState(
        kind="evaluate",
        key="",
        inputs={"settings": {"of": of}},
        state=DONE,
        told="perplexity | of a model",
        results={"suite": "perplexity", "table": table},
    )


def test_lengths_stand_in_their_order_and_what_was_not_measured_is_a_dash() -> None:
    state = RunState(
        "recipe",
        {
            "before": evaluation("original", {256: 12.344, 8192: None}),
            "after": evaluation("exported", {1024: 9.87654}),
            "later": evaluation("current", {512: 1.0}),
        },
    )
    lines = results_section(state, ["before", "after"]).splitlines()
    assert "| before | perplexity \\| of a model | perplexity of longrope |" in lines
    assert "| stage | model | method | 256 | 1k | 8k |" in lines
    assert "| before | original | longrope | 12.34 | - | - |" in lines
    assert "| after | exported | longrope | - | 9.877 | - |" in lines
    assert not any("later" in line for line in lines)
