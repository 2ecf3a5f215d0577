"""``longrope readjust``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longrope.cli import options as o
from longrope.cli.shared import sharing


@sharing(o.scoring_options)
def readjust(
    model: o.Model,
    windows: Annotated[str, typer.Option(help="Short windows to search at: 4k,8k.", metavar="LENGTHS")],
    data: o.Data,
    output: o.Output,
    factors: Annotated[
        str | None,
        typer.Option(help="The long factors, if the model folder does not hold them.", metavar="FILE"),
    ] = None,
    model_revision: o.ModelRevision = None,
    field: o.Field = "text",
    split: o.Split = "train",
    revision: o.DataRevision = None,
    config: o.DataConfig = None,
    max_documents: o.MaxDocuments = None,
    samples: o.Samples = None,
    held_out: o.HeldOut = 10,
    concatenate: o.Concatenate = False,
    seed: o.Seed = 0,
    last: o.Last = None,
    algorithm: o.Algorithm = "genetic",
    population: o.Population = None,
    mutations: o.Mutations = None,
    crossovers: o.Crossovers = None,
    parents: o.Parents = None,
    mutation_probability: o.MutationProbability = None,
    iterations: o.Iterations = None,
    max_evaluations: o.MaxEvaluations = None,
    max_gpu_hours: o.MaxGpuHours = None,
    patience: o.Patience = None,
    racing: o.Racing = None,
    watch: o.Watch = None,
    n_hat: o.NHat = None,
    lambda_max: Annotated[
        float | None,
        typer.Option(help="Largest lambda [0.5 times that of the long factors].", rich_help_panel="Search"),
    ] = None,
    attention_factor: Annotated[
        str,
        typer.Option(
            help="present (that of the long factors), su, yarn, none, a number, or search (not with paper).",
            rich_help_panel="Search",
        ),
    ] = "present",
    **options: Any,
) -> None:
    """Search factors for short windows of an extended model and add them to its schedule."""
    options = {**locals(), **options}
    from longrope.cli.outcome import print_readjust
    from longrope.cli.progress import ConsoleProgress
    from longrope.lengths import parse_lengths
    from longrope.search.readjust import ReadjustSettings
    from longrope.search.readjust import readjust as run_readjust

    settings = ReadjustSettings(
        model=o.model_name(model),
        output=output,
        windows=parse_lengths(windows),
        data=o.data_settings(options),
        factors=factors,
        execution=o.execution_settings(options),
        algorithm=o.algorithm_settings(options),
        seed=seed,
        revision=model_revision,
        resume=options["resume"],
    )
    with ConsoleProgress() as progress:
        report = run_readjust(settings, progress)
    print_readjust(report)
