"""The options of ``longrope evaluate``, and those that several of its suites share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longrope.cli import options as o
from longrope.cli.shared import sharing

PERPLEXITY, DATA = "Perplexity", "Data"
Lengths = Annotated[str, typer.Option("--lengths", help="Lengths to measure: 4k,32k,128k.", metavar="LENGTHS")]
Factors = Annotated[
    str | None, typer.Option("--factors", help="Factors or a schedule (JSON), the method longrope.", metavar="FILE")
]
Methods = Annotated[
    str,
    typer.Option(
        help="none, pi, ntk, dynamic-ntk, yarn, longrope, long (the longest window at every length), hf (what plain "
        "transformers reads in the config); comma-separated (longrope where factors are given, or none)."
    ),
]
Protocol = Annotated[
    str,
    typer.Option(
        help="full: each length is the context of the same last tokens; sliding: windows of the length over the whole "
        "document.",
        rich_help_panel=PERPLEXITY,
    ),
]
Stride = Annotated[int, typer.Option(help="Tokens that a sliding window moves by.", rich_help_panel=PERPLEXITY)]
Last = Annotated[
    int,
    typer.Option(
        help="Tokens at the end of a document that count under full (all that the shortest length predicts).",
        show_default=False,
        rich_help_panel=PERPLEXITY,
    ),
]
DocumentLength = Annotated[
    str, typer.Option(help="Tokens of each document (the longest length).", rich_help_panel=DATA, metavar="LENGTH")
]
Digits = Annotated[int, typer.Option(help="Digits of the hidden number.")]
Samples = Annotated[int, typer.Option(help="Documents.", rich_help_panel=DATA)]
MaxLength = Annotated[
    str,
    typer.Option(
        "--max-length",
        help="Most tokens of a prompt and its answer: 32k. Prompts that are longer are cut, and counted.",
        metavar="LENGTH",
    ),
]
Records = Annotated[
    str,
    typer.Option(
        "--data",
        help="Records: a .jsonl or .parquet file, a folder of them, or a Hugging Face dataset id.",
        metavar="PATH",
        rich_help_panel=DATA,
    ),
]
Drawn = Annotated[int, typer.Option(help="Records to draw (all where there are fewer).", rich_help_panel=DATA)]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of an answer.")]
ChatTemplate = Annotated[bool, typer.Option("--chat-template", help="Put prompts into the tokenizer's chat template.")]


def field_of(of: str) -> Any:
    """The option that names a field of the records."""
    return typer.Option(help=f"Field of {of}.", metavar="NAME", rich_help_panel=DATA)


@sharing(o.execution_options)
def shared_options(
    model: o.Model,
    lengths: Lengths,
    output: o.Output,
    factors: Factors = None,
    methods: Methods = "",
    model_revision: o.ModelRevision = None,
    seed: o.Seed = 0,
    **options: Any,
) -> None:
    """The options of every suite."""


def document_options(
    data: o.Data,
    field: o.Field = "text",
    split: o.Split = "train",
    revision: o.DataRevision = None,
    config: o.DataConfig = None,
    max_documents: o.MaxDocuments = None,
    samples: Samples = 10,
    concatenate: o.Concatenate = False,
) -> None:
    """The options of suites that read long documents."""


def protocol_options(
    protocol: Protocol = "full",
    stride: Stride = 256,
    last: Last = 0,
    document_length: DocumentLength = "",
) -> None:
    """The options of perplexity."""


def record_options(
    data: Records,
    samples: Drawn = 100,
    split: o.Split = "train",
    revision: o.DataRevision = None,
    config: o.DataConfig = None,
    chat_template: ChatTemplate = False,
) -> None:
    """The options of suites that ask about documents."""
