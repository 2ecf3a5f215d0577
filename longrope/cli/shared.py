"""Options that several commands have in common, declared once, and the command line as it was given."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any


def sharing(declared: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, where its ``**options`` stand, the options that are the parameters of ``declared``.

    The command receives its own parameters by name, as ever, and the others in ``options``; a parameter that both have
    is its own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [each for each in _parameters(command) if each.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {each.name for each in own}
        both = [*own, *(each for each in _parameters(declared) if each.name not in names)]
        arguments = [each for each in both if each.default is inspect.Parameter.empty]
        choices = [each for each in both if each.default is not inspect.Parameter.empty]

        @functools.wraps(command)
        def run(**options: Any) -> None:
            command(**options)

        keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*arguments, *choices)]
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in keyword_only}
        return run

    return decorate


def _parameters(function: Callable[..., None]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def given_command() -> list[str]:
    """What was typed, but for where the results go and whether a run is resumed: with these it does the same again."""
    words, arguments = ["longrope"], iter(sys.argv[1:])
    for word in arguments:
        if word in ("--output", "-o"):
            next(arguments, None)
        elif word not in ("--resume", "--debug") and not word.startswith("--output="):
            words.append(word)
    return words
