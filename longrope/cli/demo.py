"""``longrope demo``: the main job on the embedded model."""

from __future__ import annotations

from typing import Annotated

import typer

from longrope.cli import options as o

DEMO_TARGET = 2048
DEMO_HELD_OUT = 20


def demo(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder that receives the results.")] = "longrope-demo",
    max_evaluations: Annotated[int, typer.Option(help="Candidates to score.")] = 128,
    seed: Annotated[int, typer.Option(help="Decides the samples and every random choice.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Evaluators (one a core).")] = None,
    executor: Annotated[str, typer.Option(help="local or ray.")] = "local",
    resume: o.Resume = False,
) -> None:
    """Search 256 -> 2048 on the embedded model, with held-out modules of Python's standard library as text."""
    from pathlib import Path

    from longrope.cli.outcome import print_search, write_search_plots
    from longrope.cli.progress import ConsoleProgress
    from longrope.demo.corpus import python_version, write_held_out, write_training
    from longrope.search.run import refuse_other_run
    from longrope.search.search import search
    from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
    from longrope.workers.settings import ExecutionSettings

    refuse_other_run(Path(output), resume)
    with ConsoleProgress() as progress:
        text = write_held_out(Path(output) / "held-out.jsonl")
        write_training(Path(output) / "train.jsonl")  # for `longrope finetune` to go on with
        progress.note(f"text: {text}, the held-out standard-library modules of Python {python_version()}")
        settings = SearchSettings(
            model=o.model_name("demo"),
            output=output,
            target_length=DEMO_TARGET,
            data=DataSettings(source=str(text), held_out=DEMO_HELD_OUT),
            execution=ExecutionSettings(workers=workers, executor=executor),
            algorithm=AlgorithmSettings(max_evaluations=max_evaluations),
            seed=seed,
            resume=resume,
        )
        report = search(settings, progress)
    plots = write_search_plots(report)
    print_search(report, plots)
