"""``longrope plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from longrope.sizes import format_size

if TYPE_CHECKING:
    from longrope.pipeline.plan import Plan, StagePlan

_DEVICES = "Devices"


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a ready recipe.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings in place of the recipe's: seed=1, STAGE.KEY=VALUE."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="h100, h200, a100, mi300x, ... (what this machine has).", rich_help_panel=_DEVICES),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each node.", rich_help_panel=_DEVICES)] = None,
    nodes: Annotated[int, typer.Option(help="Machines.", rich_help_panel=_DEVICES)] = 1,
    host_memory: Annotated[
        float | None,
        typer.Option(help="GiB of main memory of each node [128 for each GPU].", rich_help_panel=_DEVICES),
    ] = None,
    utilisation: Annotated[
        str | None,
        typer.Option(
            help="Share of the peak to assume: 0.4, or scoring=0.5,training=0.25,short_training=0.4,generation=0.2.",
            show_default=False,
            rich_help_panel=_DEVICES,
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run short pieces of every stage on this machine, and time these.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """What a recipe costs: operations, GPU-hours, memory and disk of each stage, and whether it fits."""
    from longrope.cli.progress import ConsoleProgress
    from longrope.pipeline.cost import Utilisation
    from longrope.pipeline.plan import plan as work_out
    from longrope.pipeline.recipe import read_recipe

    given = read_recipe(recipe, changes or ())
    assumed = None if utilisation is None else Utilisation.parse(utilisation)
    with ConsoleProgress() as progress:
        found = work_out(
            given, gpu, gpus, nodes, host_memory=host_memory, utilisation=assumed, measure=measure, progress=progress
        )
    if json:
        import json as writer

        typer.echo(writer.dumps(found.to_dict(), indent=2))
    else:
        _print(found)


def _print(found: Plan) -> None:
    from rich.table import Table

    from longrope.cli.outcome import console
    from longrope.finetune.estimate import format_count

    on_gpus = found.device != "cpu"
    of = f"{found.devices} x {found.device}" if on_gpus else "a CPU"
    title = f"{found.recipe}: {found.model}, {format_count(found.parameters)} parameters, on {of}"
    drawn = Table()
    drawn.add_column("stage", no_wrap=True)
    costs = ("GPUs", "time", "GPU-hours", "GPU memory") if on_gpus else ("workers", "time", "host memory")
    for name in ("work", "FLOPs", *costs):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("disk", justify="right", no_wrap=True)
    drawn.add_column("fits")
    for stage in found.stages:
        drawn.add_row(
            stage.name,
            stage.work,
            _flops(stage.flops),
            str(stage.devices or ""),
            _duration(stage),
            *([_hours(found.stage_gpu_hours(stage))] if on_gpus else []),
            _bytes(stage.memory),
            _bytes(stage.disk),
            "yes" if stage.fits else "[bold]no[/bold]",
        )
    drawn.add_section()
    known = [stage for stage in found.stages if stage.seconds is not None]
    seconds = sum(stage.seconds or 0.0 for stage in known)
    over = "over " if len(known) < len(found.stages) else ""
    drawn.add_row(
        "total",
        "",
        over + _flops(found.flops),
        "",
        over + _time(seconds) if seconds else "unknown",
        *([over + _hours(sum(found.stage_gpu_hours(stage) or 0.0 for stage in known))] if on_gpus else []),
        "",
        _bytes(found.disk),
        "yes" if found.fits else "[bold]no[/bold]",
    )
    out = console()
    out.print(title, markup=False, soft_wrap=True)
    out.print(drawn)
    told: dict[str, list[str]] = {}
    for stage in found.stages:
        for note in stage.notes:
            told.setdefault(note, []).append(stage.name)
    for note, names in told.items():
        out.print(f"{', '.join(names)}: {note}", markup=False, soft_wrap=True)
    for note in found.notes:
        out.print(note, markup=False, soft_wrap=True)


def _duration(stage: StagePlan) -> str:
    told = _time(stage.seconds)
    if stage.fastest is None or stage.slowest is None:
        return told
    return f"{told} ({_time(stage.fastest)} to {_time(stage.slowest)})"


def _time(seconds: float | None) -> str:
    from longrope.finetune.estimate import format_duration

    if seconds is None:
        return "unknown"
    return format_duration(seconds) if seconds else ""


def _hours(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    return (f"{hours:.3g}" if hours < 100 else f"{hours:.0f}") if hours else ""


def _flops(flops: float | None) -> str:
    return "unknown" if flops is None else f"{flops:.2e}" if flops else ""


def _bytes(size: float) -> str:
    return format_size(size) if size else ""
