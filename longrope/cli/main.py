"""The ``longrope`` command. One file a subcommand; heavy libraries are imported inside them, when they run."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from longrope import __version__
from longrope.cli.apply import apply
from longrope.cli.check import check
from longrope.cli.demo import demo
from longrope.cli.evaluate import compare, evaluate
from longrope.cli.export import export
from longrope.cli.extend import extend
from longrope.cli.finetune import finetune
from longrope.cli.import_factors import import_factors
from longrope.cli.merge import merge
from longrope.cli.plan import plan
from longrope.cli.readjust import readjust
from longrope.cli.report import report
from longrope.cli.score import score
from longrope.cli.search import search
from longrope.cli.show import show
from longrope.cli.status import status
from longrope.exceptions import InvalidInputError, LongRopeError


class _Commands(TyperGroup):
    """The subcommands; Ctrl-C is answered here, before typer makes of it what its version sees fit."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted; extend goes on when it is given again, other commands with --resume", file=sys.stderr)
            sys.exit(130)


app = typer.Typer(
    name="longrope",
    cls=_Commands,
    help="Extend the context window of RoPE language models the LongRoPE way.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"longrope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Extend the context window of RoPE language models the LongRoPE way."""


for command in (
    extend,
    plan,
    status,
    search,
    finetune,
    readjust,
    compare,
    score,
    show,
    apply,
    check,
    merge,
    report,
    demo,
):
    app.command()(command)
app.command("import")(import_factors)
app.add_typer(evaluate, name="evaluate")
app.add_typer(export, name="export")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings on one line, without the line of code they come from; others as Python prints them."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)


def main() -> None:
    """Run the command line: exit code 2 for bad input, 1 for a failed run, 130 for Ctrl-C."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]  # wherever it stands
    debug = len(arguments) < len(sys.argv) - 1
    if debug:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("longrope").setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module=r"longrope\.")
            warnings.showwarning = _show_warning
            app(args=arguments)
    except (LongRopeError, OSError) as error:
        if debug:
            traceback.print_exc()
        told = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            told = f"{error.filename}: {error.strerror}"
        print(f"error: {' '.join(told.splitlines())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidInputError) else 1)


if __name__ == "__main__":
    main()
