"""A run that is killed at given moments, whole, and then carried out to its end: RECIPE OUTPUT MOMENTS.

MOMENTS are a JSON list of stages and moments of them. Every start is a process of its own, forked before anything is
computed, so that the libraries are imported once. The evaluators of one stage are processes too.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from tiny_recipes import Moments, carry_out

from longrope.pipeline.recipe import read_recipe

WITH_PROCESSES = "search-256"


def start(recipe: str, output: str, stage: str = "", moment: int = 0) -> int:
    """The exit code of a process that carries the recipe out until a moment of a stage, or to its end."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        seen = Moments(stage, moment)
        carry_out(read_recipe(recipe), Path(output), seen, lambda: seen.stage == WITH_PROCESSES)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    kills = [start(sys.argv[1], sys.argv[2], stage, moment) for stage, moment in json.loads(sys.argv[3])]
    print(json.dumps([*kills, start(sys.argv[1], sys.argv[2])]))
