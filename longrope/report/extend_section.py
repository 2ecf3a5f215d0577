"""A run of a recipe as the first section of its report; its stages follow as sections of their own."""

from __future__ import annotations

from pathlib import Path

from longrope.pipeline.state import DONE, RunState
from longrope.pipeline.summary import perplexity_table, result_of
from longrope.report.content import Section, Table, when
from longrope.search.solve import describe_duration


def extend_section(folder: Path, state: RunState) -> Section:
    """The stages with their times and results, and perplexity by method and length."""
    stages = Table(
        ("stage", "what", "state", "time", "result"),
        tuple(
            (name, stage.told, stage.state, describe_duration(stage.seconds), result_of(stage))
            for name, stage in state.stages.items()
        ),
        "Stages",
        emphasised="\0",
    )
    done = sum(stage.state == DONE for stage in state.stages.values())
    facts = [
        ("stages", f"{done} of {len(state.stages)} done"),
        ("time", describe_duration(sum(stage.seconds for stage in state.stages.values()))),
    ]
    if state.finished:
        facts.append(("finished", when(state.finished)))
    tables = [stages]
    frame = perplexity_table(state)
    if len(frame):
        frame = frame.astype(object).where(frame.notna(), None)
        rows = tuple((f"{row[1]}, {row[2]}", *row[3:], row[0]) for row in frame.itertuples(index=False, name=None))
        columns = ("model and method", *map(str, frame.columns[3:]), "stage")
        tables.append(Table(columns, rows, "Perplexity by length", emphasised="extended, longrope"))
    return Section(
        kind="run of a recipe",
        title=state.recipe,
        name="recipe",
        source=str(folder),
        facts=tuple(facts),
        tables=tuple(tables),
        command=f"longrope extend {folder.name}/recipe.yaml \\\n    --output NEW_FOLDER",
    )
