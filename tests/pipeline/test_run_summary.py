"""A run told in Markdown for the card of its model."""

from __future__ import annotations

from typing import Any

from longrope.pipeline.state import DONE, RunState, StageState
from longrope.pipeline.summary import result_of, results_section
from longrope.search.settings import DataSettings


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


def finished(kind: str, results: dict[str, Any]) -> StageState:
    return StageState(kind=kind, key="", inputs={"settings": {}}, state=DONE, told=kind, results=results)


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


def test_a_search_by_part_of_its_texts_says_which() -> None:
    results: dict[str, Any] = {
        "search_perplexity": 12.0,
        "held_out_perplexity": 12.344,
        "yarn_held_out_perplexity": 13.0,
        "n_hat": 0,
        "candidates": 9,
    }
    part = {"scored": DataSettings(source="texts", last=1024).scored_part}
    for record, told in ((results | part, "perplexity of the last 1,024 tokens 12.34"), (results, "perplexity 12.34")):
        assert result_of(finished("search", record)) == f"{told} (YaRN 13), n_hat 0, 9 candidates"


def test_a_readjustment_by_part_of_its_texts_says_which() -> None:
    results: dict[str, Any] = {"windows": {"256": {"held_out_perplexity": 12.344, "with_long_factors": 13.0}}}
    part = {"scored": DataSettings(source="texts", last=64).scored_part}
    assert result_of(finished("readjust", results)) == "12.34 at 256 (long factors 13)"
    told = "perplexity of the last 64 tokens 12.34 at 256 (long factors 13)"
    assert result_of(finished("readjust", results | part)) == told
