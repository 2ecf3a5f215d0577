"""The ``longrope`` command. One file a subcommand; heavy libraries are imported inside them, when they run."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from longrope import __version__
from longrope.cli.apply import apply
from longrope.cli.demo import demo
from longrope.cli.readjust import readjust
from longrope.cli.search import search
from longrope.cli.show import show
from longrope.exceptions import InvalidInputError, LongRopeError

app = typer.Typer(
    name="longrope",
    help="Extend the context window of RoPE language models the LongRoPE way.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Extend the context window of RoPE language models the LongRoPE way."""


for command in (search, readjust, show, apply, demo):
    app.command()(command)


def main() -> None:
    """Run the command line: exit code 2 for bad input, 1 for a failed run, 130 for Ctrl-C."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"]:
        print(f"longrope {__version__}")
        return
    debug = "--debug" in arguments
    try:
        app()
    except LongRopeError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidInputError) else 1)
    except OSError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; what was evaluated is kept, go on with --resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
