"""``longrope apply``."""

from __future__ import annotations

from typing import Annotated

import typer

from longrope.cli import options as o


def apply(
    model: o.Model,
    factors: o.Factors,
    output: o.Output,
    without_n_hat: Annotated[
        bool, typer.Option("--without-n-hat", help="Use the best candidate with n_hat = 0 where n_hat is not 0.")
    ] = False,
    model_revision: o.ModelRevision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Write a Hugging Face folder that plain transformers loads with the factors."""
    from longrope.export.huggingface import export_folder
    from longrope.model.load import ModelSource
    from longrope.rope.policy import load_factors

    loaded = load_factors(factors)
    source = ModelSource(o.model_name(model), model_revision, trust_remote_code=trust_remote_code)
    exported = export_folder(source, loaded, output, without_n_hat)
    typer.echo(f"{exported.folder}: windows {exported.schedule.describe()}")
    for loss in exported.losses:
        typer.echo(f"note: {loss}")
