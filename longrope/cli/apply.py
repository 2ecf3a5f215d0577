"""``longrope apply``."""

from __future__ import annotations

from typing import Annotated

import typer

from longrope.cli import options as o

_FACTORS, _FILES, _HUB = "Factors in the config", "Files", "Hub"


def apply(
    model: o.Model,
    factors: o.Factors,
    output: o.Output,
    without_n_hat: Annotated[
        bool,
        typer.Option(
            "--without-n-hat",
            help="Use the best candidate with n_hat = 0 where n_hat is not 0.",
            rich_help_panel=_FACTORS,
        ),
    ] = False,
    short_window: Annotated[
        str | None,
        typer.Option(
            help="Window whose factors become the short list; if not given, the largest of at most the pretraining "
            "length.",
            metavar="LENGTH",
            rich_help_panel=_FACTORS,
        ),
    ] = None,
    single_list: Annotated[
        bool,
        typer.Option(
            "--single-list",
            help="Leave shorter windows out: the long factors for all texts, for engines with one list.",
            rich_help_panel=_FACTORS,
        ),
    ] = False,
    attention_factor: Annotated[
        str,
        typer.Option(
            help="Whose attention factor plain transformers gets, which has one for both lists: long or short.",
            rich_help_panel=_FACTORS,
        ),
    ] = "long",
    config_format: Annotated[
        str,
        typer.Option(
            help="v5 (rope_parameters), or v4 (rope_scaling) for transformers 4, mlx-lm and other older readers.",
            metavar="v5|v4",
            rich_help_panel=_FACTORS,
        ),
    ] = "v5",
    code: Annotated[
        bool,
        typer.Option(
            "--code",
            help="Add a modeling file: n_hat and all windows for those who load with trust_remote_code.",
            rich_help_panel=_FACTORS,
        ),
    ] = False,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Write no weights.", rich_help_panel=_FILES)
    ] = False,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy the weights; hard links share them with the model.", rich_help_panel=_FILES),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="Upload the folder to this model repository.", metavar="REPO_ID", rich_help_panel=_HUB),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.", rich_help_panel=_HUB)
    ] = False,
    model_revision: o.ModelRevision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Write a Hugging Face folder that plain transformers and other engines load with the factors."""
    from longrope.exceptions import SettingsError
    from longrope.export.hub import check_repository, push_folder
    from longrope.export.huggingface import export_folder
    from longrope.lengths import parse_length
    from longrope.model.load import ModelSource
    from longrope.rope.policy import load_factors

    if push_to_hub is not None:
        check_repository(push_to_hub)
    elif private:
        raise SettingsError("--private is about a repository on the hub; add --push-to-hub REPO_ID")
    loaded = load_factors(factors)
    exported = export_folder(
        ModelSource(o.model_name(model), model_revision, trust_remote_code=trust_remote_code),
        loaded,
        output,
        without_n_hat,
        short_window=None if short_window is None else parse_length(short_window),
        single_list=single_list,
        attention_factor=attention_factor,
        config_format=config_format,
        code=code,
        config_only=config_only,
        copy=copy,
        name=push_to_hub,
    )
    typer.echo(f"{exported.folder}: windows {exported.schedule.describe()}")
    without = "without trust_remote_code, " if code else ""
    for loss in exported.losses:
        typer.echo(f"note: {without}{loss}")
    if push_to_hub is not None:
        typer.echo(f"pushed: {push_folder(exported.folder, push_to_hub, private or None)}")
