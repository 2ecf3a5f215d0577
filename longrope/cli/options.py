"""Options that several subcommands share, and their translation into settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli.shared import sharing
from longrope.demo import model_name as model_name

if TYPE_CHECKING:
    from longrope.search.settings import AlgorithmSettings, DataSettings
    from longrope.workers.settings import ExecutionSettings

_DATA, _SEARCH, _RUN = "Data", "Search", "Execution"

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a hub id, or `demo` (the embedded model).")
]
ModelRevision = Annotated[
    str | None, typer.Option("--model-revision", help="Branch, tag or commit of a model on the hub.")
]
Output = Annotated[str, typer.Option("--output", "-o", help="Folder that receives the results.", metavar="DIR")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Long documents: a .txt, .md, .jsonl or .parquet file, a folder of them, or a Hugging Face dataset id.",
        metavar="PATH",
        rich_help_panel=_DATA,
    ),
]
Field = Annotated[str, typer.Option(help="Text field of JSONL, parquet and datasets.", rich_help_panel=_DATA)]
Split = Annotated[str, typer.Option(help="Split of a Hugging Face dataset.", rich_help_panel=_DATA)]
DataRevision = Annotated[
    str | None, typer.Option("--revision", help="Revision of a Hugging Face dataset.", rich_help_panel=_DATA)
]
DataConfig = Annotated[
    str | None, typer.Option("--config", help="Configuration of a Hugging Face dataset.", rich_help_panel=_DATA)
]
MaxDocuments = Annotated[
    int | None,
    typer.Option(help="Stop reading after so many documents [2000 of a hub dataset].", rich_help_panel=_DATA),
]
Samples = Annotated[int | None, typer.Option(help="Documents to search on [5; 3 above 512k].", rich_help_panel=_DATA)]
HeldOut = Annotated[
    int, typer.Option(help="Other documents, only for the final comparison; 0 for none.", rich_help_panel=_DATA)
]
Concatenate = Annotated[
    bool, typer.Option("--concatenate", help="Join documents instead of asking for long ones.", rich_help_panel=_DATA)
]
Last = Annotated[
    int | None,
    typer.Option(
        help="Tokens at the end of each sample that alone count, after all others were read.", rich_help_panel=_SEARCH
    ),
]
Seed = Annotated[int, typer.Option(help="Decides the samples and every random choice.", rich_help_panel=_SEARCH)]
Algorithm = Annotated[
    str,
    typer.Option(
        help="paper (the genetic search of LongRoPE), or from coarse to fine: genetic or cma.",
        rich_help_panel=_SEARCH,
    ),
]
Population = Annotated[
    int | None,
    typer.Option(
        help="Candidates of a round [8]; with paper, of the first one [64; 32 above 512k].",
        rich_help_panel=_SEARCH,
    ),
]
Mutations = Annotated[
    int | None, typer.Option(help="Only of paper: mutations a round [16; 8 above 512k].", rich_help_panel=_SEARCH)
]
Crossovers = Annotated[
    int | None, typer.Option(help="Only of paper: crossovers a round [16; 8 above 512k].", rich_help_panel=_SEARCH)
]
Parents = Annotated[
    int | None, typer.Option(help="Only of paper: best candidates that have children [32].", rich_help_panel=_SEARCH)
]
MutationProbability = Annotated[
    float | None,
    typer.Option(help="Only of paper: probability of each gene to mutate [0.3].", rich_help_panel=_SEARCH),
]
Iterations = Annotated[
    int | None, typer.Option(help="Only of paper: rounds after the first [40].", rich_help_panel=_SEARCH)
]
MaxEvaluations = Annotated[
    int | None,
    typer.Option(help="Candidates to score at most [200; all rounds for paper].", rich_help_panel=_SEARCH),
]
MaxGpuHours = Annotated[
    float | None,
    typer.Option(help="Time in the model at most, of all evaluators together.", rich_help_panel=_SEARCH),
]
Patience = Annotated[
    int | None,
    typer.Option(help="End after so many rounds without a clearly better candidate.", rich_help_panel=_SEARCH),
]
Racing = Annotated[
    bool | None,
    typer.Option(
        "--racing/--no-racing",
        help="Drop candidates that are clearly behind after some of the samples (on, but for paper).",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
Watch = Annotated[
    int | None,
    typer.Option(
        help="Rounds between looks at held-out documents, 0 for none [10; 0 for paper].", rich_help_panel=_SEARCH
    ),
]
NHat = Annotated[
    str | None,
    typer.Option(
        "--n-hat",
        help="Choices of n_hat, comma-separated [0; 0,2,4,...,256 for paper].",
        rich_help_panel=_SEARCH,
    ),
]
LambdaMax = Annotated[
    float | None,
    typer.Option(
        help="Largest lambda [4 times target over original length; 1.25 times for paper].", rich_help_panel=_SEARCH
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Evaluators (as many as the machine has room for).", rich_help_panel=_RUN)
]
ThreadsPerWorker = Annotated[int, typer.Option(help="CPU threads of each evaluator.", rich_help_panel=_RUN)]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(help="GPUs of each evaluator: 1, several, or a fraction [1 on GPUs].", rich_help_panel=_RUN),
]
Sp = Annotated[
    int,
    typer.Option(
        help="Processes, each with the model on a GPU of its own, that score every long sample together.",
        rich_help_panel=_RUN,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(help="Candidates in one forward pass (as many as fill a GPU; 1 on a CPU).", rich_help_panel=_RUN),
]
Executor = Annotated[str, typer.Option(help="local or ray.", rich_help_panel=_RUN)]
RayAddress = Annotated[
    str | None, typer.Option(help="An existing Ray cluster: auto, or ray://host:port.", rich_help_panel=_RUN)
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the output folder.", rich_help_panel=_RUN)
]
Dtype = Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.", rich_help_panel=_RUN)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...", rich_help_panel=_RUN)]
Attn = Annotated[str, typer.Option(help="sdpa, eager, flash_attention_2 or flash_attention_3.", rich_help_panel=_RUN)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that lies with the model.", rich_help_panel=_RUN)
]
Factors = Annotated[str, typer.Option("--factors", help="Factors or a schedule (JSON).", metavar="FILE")]


def execution_options(
    workers: Workers = None,
    threads_per_worker: ThreadsPerWorker = 1,
    gpus_per_worker: GpusPerWorker = None,
    sp: Sp = 1,
    executor: Executor = "local",
    ray_address: RayAddress = None,
    resume: Resume = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attn = "sdpa",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """The options of every command that scores texts; see :func:`execution_settings`."""


@sharing(execution_options)
def scoring_options(batch: Batch = None, **options: Any) -> None:
    """The options of the commands that score candidates."""


def data_settings(options: dict[str, Any]) -> DataSettings:
    """Data settings from a command's options by their Python names."""
    from longrope.search.settings import DataSettings

    return DataSettings(
        source=options["data"],
        field=options["field"],
        split=options["split"],
        revision=options["revision"],
        config=options["config"],
        samples=options["samples"],
        held_out=options["held_out"],
        concatenate=options["concatenate"],
        max_documents=options["max_documents"],
        objective=options.get("objective", "perplexity"),
        last=options.get("last"),
    )


def execution_settings(options: dict[str, Any]) -> ExecutionSettings:
    """Execution settings from a command's options by their Python names."""
    from longrope.workers.settings import ExecutionSettings

    return ExecutionSettings(
        workers=options["workers"],
        threads_per_worker=options["threads_per_worker"],
        gpus_per_worker=options["gpus_per_worker"],
        sp=options["sp"],
        batch=options.get("batch"),
        executor=options["executor"],
        ray_address=options["ray_address"],
        dtype=options["dtype"],
        device=options["device"],
        attention=options["attn"],
        trust_remote_code=options["trust_remote_code"],
    )


_ENDS = ("max_evaluations", "max_gpu_hours", "patience", "racing", "watch")


def algorithm_settings(options: dict[str, Any]) -> AlgorithmSettings:
    """Algorithm settings from a command's options by their Python names."""
    from longrope.search.settings import AlgorithmSettings

    names = ("algorithm", "population", "mutations", "crossovers", "parents", "iterations", "mutation_probability")
    chosen = {name: options[name] for name in (*names, *_ENDS, "lambda_max", "attention_factor")}
    if options["n_hat"] is not None:
        chosen["n_hat"] = parse_choices(options["n_hat"])
    return AlgorithmSettings(**chosen)


def names(text: str) -> tuple[str, ...]:
    """Names in a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def json_object(text: str, option: str) -> dict[str, Any]:
    """The object that an option gives as JSON; empty where nothing is given.

    Raises:
        SettingsError: if it is not one.
    """
    import json

    from longrope.exceptions import SettingsError

    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise SettingsError(f'{option} {text!r} is not JSON ({error}); write for example {{"key": 1}}') from None
    if not isinstance(found, dict):
        raise SettingsError(f'{option} {text!r} is not an object; write for example {{"key": 1}}')
    return found


def parse_choices(text: str) -> tuple[int, ...]:
    """Whole numbers in a comma-separated list.

    Raises:
        SettingsError: if one is not a whole number of at least 0.
    """
    from longrope.exceptions import SettingsError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise SettingsError(f"n_hat choices {text!r} are not whole numbers; write for example 0,2,4,8")
    return tuple(int(part) for part in parts)
