"""``longrope score``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options as o

if TYPE_CHECKING:
    from longrope.pipeline.score_text import Scored


def score(
    model: o.Model,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            help="What to read: a .txt, .md, .jsonl or .parquet file, a folder of them, or a Hugging Face dataset id; "
            "documents one after the other.",
        ),
    ],
    lengths: Annotated[
        str, typer.Option("--lengths", help="Tokens from its beginning: 8k,128k,2m.", metavar="LENGTHS")
    ],
    factors: Annotated[str | None, typer.Option("--factors", help="Factors or a schedule.", metavar="FILE")] = None,
    method: Annotated[
        str,
        typer.Option(help="none, pi, ntk, dynamic-ntk, yarn, longrope, long or hf, as in `longrope evaluate`."),
    ] = "",
    model_revision: o.ModelRevision = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads (as many as there are cores).")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs that the layers of the model are spread over.")] = None,
    sp: Annotated[
        int, typer.Option(help="Processes, each with the model on a GPU of its own, that score the text together.")
    ] = 1,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    attn: o.Attn = "sdpa",
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Score the beginning of a text: its perplexity, how long it took, and in how much memory.

    Texts of any length that one layer's keys and values leave room for: beyond a few thousand tokens they go through
    the model layer by layer, without a cache, masks or logits as a whole.
    """
    from transformers.utils import logging

    from longrope.cli.outcome import print_scored
    from longrope.cli.progress import ConsoleProgress
    from longrope.lengths import format_length, parse_lengths
    from longrope.pipeline.score_text import ScoreSettings
    from longrope.pipeline.score_text import score as run_score
    from longrope.workers.room import usable_cpus
    from longrope.workers.settings import ExecutionSettings

    settings = ScoreSettings(
        model=o.model_name(model),
        text=text,
        lengths=parse_lengths(lengths),
        factors=factors,
        method=method,
        execution=ExecutionSettings(
            workers=1,
            threads_per_worker=max(usable_cpus() // sp, 1) if threads is None else threads,
            gpus_per_worker=gpus,
            sp=sp,
            dtype=dtype,
            device=device,
            attention=attn,
            trust_remote_code=trust_remote_code,
        ),
        revision=model_revision,
    )
    if gpus is not None:  # of the visible ones, the first
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[:gpus])
    logging.disable_progress_bar()  # one model is loaded, and said so
    found: list[Scored] = []
    try:
        with ConsoleProgress() as progress:
            for each in run_score(settings, progress):
                found.append(each)
                # With its result, should this process be ended before the table is drawn.
                progress.note(f"{format_length(each.length)}: perplexity {each.perplexity:.4f}, {each.seconds:.1f} s")
    finally:
        if found:  # even if a longer text failed
            print_scored(found)
