"""``longrope search``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longrope.cli import options as o
from longrope.cli.shared import sharing


@sharing(o.scoring_options)
def search(
    model: o.Model,
    target_length: Annotated[str, typer.Option(help="Tokens to extend to: 4096, 128k, 2m.", metavar="LENGTH")],
    data: o.Data,
    output: o.Output,
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
    objective: Annotated[
        str,
        typer.Option(
            help="perplexity of all tokens, or needle: of a number hidden at the start and asked for at the end "
            "(LongRoPE2).",
            rich_help_panel="Search",
        ),
    ] = "perplexity",
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
    lambda_max: o.LambdaMax = None,
    attention_factor: Annotated[
        str,
        typer.Option(
            help="su, yarn, present, none, a number, search (not with paper), or auto: present for a model already "
            "scaled, su for a plain one.",
            rich_help_panel="Search",
        ),
    ] = "auto",
    **options: Any,
) -> None:
    """Search rescale factors for a longer window: a model goes in, a factor JSON comes out."""
    options = {**locals(), **options}
    from longrope.cli.outcome import print_search, write_search_plots
    from longrope.cli.progress import ConsoleProgress
    from longrope.lengths import parse_length
    from longrope.search.search import search as run_search
    from longrope.search.settings import SearchSettings

    settings = SearchSettings(
        model=o.model_name(model),
        output=output,
        target_length=parse_length(target_length),
        data=o.data_settings(options),
        execution=o.execution_settings(options),
        algorithm=o.algorithm_settings(options),
        seed=seed,
        revision=model_revision,
        resume=options["resume"],
    )
    with ConsoleProgress() as progress:
        report = run_search(settings, progress)
    plots = write_search_plots(report)
    print_search(report, plots)
