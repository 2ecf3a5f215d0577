"""``longrope evaluate`` and ``longrope compare``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from longrope.cli import options as o
from longrope.cli.shared import sharing
from longrope.exceptions import SettingsError

if TYPE_CHECKING:
    from longrope.evaluation.settings import EvaluationSettings
    from longrope.evaluation.suite import Suite
    from longrope.runs.model import LoadedModel
    from longrope.runs.progress import Progress


class _Suites(TyperGroup):
    """The suites, which an unknown name lists."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            raise SettingsError(f"suite {cmd_name!r} is not known; use {', '.join(sorted(self.commands))}")
        return found


evaluate = typer.Typer(cls=_Suites, help="Measure a model, as it is or under factors.", no_args_is_help=True)

_PERPLEXITY, _DATA = "Perplexity", "Data"
_Lengths = Annotated[str, typer.Option("--lengths", help="Lengths to measure: 4k,32k,128k.", metavar="LENGTHS")]
_Factors = Annotated[
    str | None, typer.Option("--factors", help="Factors or a schedule (JSON), the method longrope.", metavar="FILE")
]
_Methods = Annotated[
    str,
    typer.Option(
        help="none, pi, ntk, dynamic-ntk, yarn, longrope; comma-separated (longrope where factors are given, or none)."
    ),
]
_Protocol = Annotated[
    str,
    typer.Option(
        help="full: each length is the context of the same last tokens; sliding: windows of the length over the whole "
        "document.",
        rich_help_panel=_PERPLEXITY,
    ),
]
_Stride = Annotated[int, typer.Option(help="Tokens that a sliding window moves by.", rich_help_panel=_PERPLEXITY)]
_Last = Annotated[
    int,
    typer.Option(
        help="Tokens at the end of a document that count under full (all that the shortest length predicts).",
        show_default=False,
        rich_help_panel=_PERPLEXITY,
    ),
]
_DocumentLength = Annotated[
    str, typer.Option(help="Tokens of each document (the longest length).", rich_help_panel=_DATA, metavar="LENGTH")
]
_Samples = Annotated[int, typer.Option(help="Documents.", rich_help_panel=_DATA)]


@evaluate.callback()
def _evaluate() -> None:
    """Measure a model, as it is or under factors."""


def _shared(
    model: o.Model,
    lengths: _Lengths,
    output: o.Output,
    factors: _Factors = None,
    methods: _Methods = "",
    model_revision: o.ModelRevision = None,
    seed: o.Seed = 0,
    workers: o.Workers = None,
    threads_per_worker: o.ThreadsPerWorker = 1,
    gpus_per_worker: o.GpusPerWorker = None,
    executor: o.Executor = "local",
    ray_address: o.RayAddress = None,
    resume: o.Resume = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    attn: o.Attn = "sdpa",
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """The options of every suite."""


def _documents(
    data: o.Data,
    protocol: _Protocol = "full",
    stride: _Stride = 256,
    last: _Last = 0,
    document_length: _DocumentLength = "",
    field: o.Field = "text",
    split: o.Split = "train",
    revision: o.DataRevision = None,
    config: o.DataConfig = None,
    max_documents: o.MaxDocuments = None,
    samples: _Samples = 10,
    concatenate: o.Concatenate = False,
) -> None:
    """The options of perplexity."""


@evaluate.command()
@sharing(_shared)
@sharing(_documents)
def perplexity(**options: Any) -> None:
    """Perplexity at several lengths, per token and per byte, with its spread over documents."""
    _run_perplexity(options)


@evaluate.command()
@sharing(_shared)
def passkey(
    trials: Annotated[int, typer.Option(help="Texts at each length.")] = 10,
    introduction: Annotated[bool, typer.Option(help="Announce the pass key at the start, as in the paper.")] = True,
    **options: Any,
) -> None:
    """Five digits hidden in a text that says nothing, and asked for at its end."""
    from longrope.evaluation.open_passkey import open_passkey
    from longrope.evaluation.settings import PasskeySettings

    settings = _settings(options)
    suite = PasskeySettings(trials=trials, introduction=introduction)
    _run(settings, partial(open_passkey, suite, settings.lengths, settings.seed), suite)


@sharing(_shared)
@sharing(_documents)
def compare(methods: _Methods = "none,pi,ntk,dynamic-ntk,yarn,longrope", **options: Any) -> None:
    """One table of the perplexity of all methods."""
    _run_perplexity({**options, "methods": methods})


def _run_perplexity(options: dict[str, Any]) -> None:
    from longrope.evaluation.open_perplexity import open_perplexity
    from longrope.evaluation.settings import PerplexitySettings
    from longrope.lengths import parse_length

    settings = _settings(options)
    names = ("field", "split", "revision", "config", "samples", "protocol", "stride", "last", "concatenate")
    suite = PerplexitySettings(
        source=options["data"],
        document_length=parse_length(options["document_length"]) if options["document_length"] else None,
        max_documents=options["max_documents"],
        **{name: options[name] for name in names},
    )
    _run(settings, partial(open_perplexity, suite, settings.lengths, settings.seed), suite)


def _settings(options: dict[str, Any]) -> EvaluationSettings:
    """What all suites share, from a command's options by their Python names."""
    from longrope.evaluation.settings import EvaluationSettings
    from longrope.lengths import parse_lengths

    return EvaluationSettings(
        model=o.model_name(options["model"]),
        output=options["output"],
        lengths=parse_lengths(options["lengths"]),
        factors=options["factors"],
        methods=tuple(name.strip() for name in options["methods"].split(",") if name.strip()),
        execution=o.execution_settings(options),
        seed=options["seed"],
        revision=options["model_revision"],
        resume=options["resume"],
    )


def _run(
    settings: EvaluationSettings, open_suite: Callable[[LoadedModel, Progress], Suite], chosen: Any = None
) -> None:
    """Evaluate and print; ``chosen`` is the settings dataclass of the suite, for the record."""
    from longrope.cli.outcome import print_evaluation
    from longrope.cli.progress import ConsoleProgress
    from longrope.evaluation.run import evaluate as run_evaluation

    with ConsoleProgress() as progress:
        report = run_evaluation(settings, open_suite, progress, chosen)
    print_evaluation(report)
