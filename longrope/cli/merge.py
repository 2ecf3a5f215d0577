"""``longrope merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options as o


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of an adapter that finetune wrote.")],
    output: o.Output,
    base: Annotated[
        str | None,
        typer.Option(help="The model it was trained on, if not as the adapter says.", metavar="MODEL"),
    ] = None,
    model_revision: o.ModelRevision = None,
    dtype: Annotated[str, typer.Option(help="auto (as the model has it), bf16, fp16 or fp32.")] = "auto",
    factors: Annotated[
        str | None, typer.Option(help="Factors or a schedule, if not the adapter's longrope.json.", metavar="FILE")
    ] = None,
    without_n_hat: Annotated[
        bool, typer.Option("--without-n-hat", help="Use the best candidate with n_hat = 0 where n_hat is not 0.")
    ] = False,
    code: Annotated[
        bool,
        typer.Option("--code", help="Add a modeling file: n_hat and all windows with trust_remote_code."),
    ] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Fold an adapter, embeddings and norms into a plain, unquantised model with the factors."""
    from longrope.exceptions import SettingsError
    from longrope.finetune.merge import merge as fold
    from longrope.model.load import ModelSource

    if model_revision is not None and base is None:
        raise SettingsError("--model-revision is about a model on the hub; add --base MODEL")
    given = base and ModelSource(o.model_name(base), model_revision, trust_remote_code=trust_remote_code)
    exported = fold(
        adapter,
        output,
        given or None,
        dtype=dtype,
        factors=factors,
        without_n_hat=without_n_hat,
        code=code,
        trust_remote_code=trust_remote_code,
    )
    typer.echo(f"{exported.folder}: windows {exported.schedule.describe()}")
    without = "without trust_remote_code, " if code else ""
    for loss in exported.losses:
        typer.echo(f"note: {without}{loss}")
