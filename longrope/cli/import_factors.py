"""``longrope import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.lengths import format_length, parse_length

if TYPE_CHECKING:
    from longrope.importers.imported import Imported

_TABLE = "Tables (CSV)"


def import_factors(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A CSV table (one row of factors, or the same row per layer), or a Hugging Face config: "
            "a config.json, a model folder or a hub id.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Factor file to write (JSON).", metavar="FILE")],
    target_length: Annotated[
        str | None,
        typer.Option(help='Tokens the factors are for: of a table, and of a config of rope type "dynamic".'),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a SOURCE on the hub.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model a table is for: a folder, a config.json or a hub id.",
            metavar="MODEL",
            rich_help_panel=_TABLE,
        ),
    ] = None,
    rope_theta: Annotated[
        float | None, typer.Option(help="The base of plain RoPE, instead of --model.", rich_help_panel=_TABLE)
    ] = None,
    original_length: Annotated[
        str | None, typer.Option(help="Tokens of the pretraining, instead of --model.", rich_help_panel=_TABLE)
    ] = None,
    attention_factor: Annotated[
        str | None, typer.Option(help="su, yarn, present, none or a number (su).", rich_help_panel=_TABLE)
    ] = None,
    n_hat: Annotated[
        int | None, typer.Option(help="Start tokens that keep their plain angle [0].", rich_help_panel=_TABLE)
    ] = None,
) -> None:
    """Read published factors, from a table or from a Hugging Face config, and write them as a factor file."""
    from longrope.exceptions import SettingsError
    from longrope.importers.config import find_config, import_config

    length = None if target_length is None else parse_length(target_length)
    for_tables = {
        "--model": model,
        "--rope-theta": rope_theta,
        "--original-length": original_length,
        "--attention-factor": attention_factor,
        "--n-hat": n_hat,
    }
    path = Path(source)
    if path.is_file() and path.suffix != ".json":
        imported = _table(path, length, model, rope_theta, original_length, attention_factor, n_hat)
    else:
        given = [name for name, value in for_tables.items() if value is not None]
        if given:
            raise SettingsError(f"{source}: {given[0]} is for tables; a config says all of it itself")
        path = find_config(source, revision)
        imported = import_config(path, source, length)
    if output.exists() and output.samefile(path):
        raise SettingsError(f"output {output} is the source itself; choose another file")
    imported.factors.save(output)
    _print(imported, output)


def _table(
    path: Path,
    target_length: int | None,
    model: str | None,
    rope_theta: float | None,
    original_length: str | None,
    attention_factor: str | None,
    n_hat: int | None,
) -> Imported:
    from longrope.cli.options import model_name
    from longrope.exceptions import SettingsError
    from longrope.importers.config import find_config, read_config_rope
    from longrope.importers.table import import_table, read_table
    from longrope.rope.factors import RopeFactors

    if target_length is None:
        raise SettingsError(f"{path}: a table does not say its length; add --target-length, for example 128k")
    if model is not None and (rope_theta is not None or original_length is not None):
        raise SettingsError("--model says rope_theta and the original length; leave out one or the other")
    if model is None and (rope_theta is None or original_length is None):
        raise SettingsError(
            f"{path}: a table does not say its model; add --model, or --rope-theta and --original-length"
        )
    if model is not None:
        rope = read_config_rope(find_config(model_name(model)))
        base, present = rope.identity(), rope.present.attention_factor
    else:
        assert rope_theta is not None
        assert original_length is not None
        pairs = len(read_table(path).lambdas)
        base, present = RopeFactors.identity(rope_theta, 2 * pairs, parse_length(original_length)), 1.0
    return import_table(path, base, target_length, attention_factor or "su", n_hat or 0, present)


def _print(imported: Imported, output: Path) -> None:
    for window in imported.windows:
        factors = window.factors
        typer.echo(
            f"window {format_length(window.max_length)}: {format_length(factors.original_length)} -> "
            f"{format_length(factors.target_length)} (s = {factors.ratio:g}), rope_theta {factors.rope_theta:g}, "
            f"{len(factors.lambdas)} lambdas from {min(factors.lambdas):g} to {max(factors.lambdas):g}, "
            f"n_hat {factors.n_hat}, attention factor {factors.attention_factor:.6g}"
        )
    for note in imported.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{output}: imported from a {imported.description}")
