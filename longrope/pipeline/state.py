"""What a run folder remembers of its stages, written whole whenever something changes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longrope.exceptions import InvalidInputError, RunExistsError
from longrope.files import write_text_atomically
from longrope.runs.locks import is_locked

STATE_FILE, LOCK_FILE = "extend.json", "lock"
WAITING, RUNNING, DONE, FAILED = STATES = ("waiting", "running", "done", "failed")


@dataclass
class StageState:
    """One stage.

    Attributes:
        kind: search, finetune, readjust, evaluate or export.
        told: what it does, in a few words.
        inputs: all that decides its result, by name.
        key: a digest of the inputs.
        state: one of STATES.
        started: when it was last begun, in seconds since the epoch.
        seconds: that it has taken, of all times it was begun.
        results: what came out.
        error: why it failed.
    """

    kind: str
    told: str
    inputs: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    state: str = WAITING
    started: float | None = None
    seconds: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def begin(self) -> None:
        """The stage is started, or gone on with."""
        self.state, self.started, self.error = RUNNING, time.time(), None

    def end(self, state: str) -> None:
        """The stage has come to an end in this process."""
        assert self.started is not None
        # Clocks are set back now and then.
        self.state, self.seconds, self.started = state, self.seconds + max(time.time() - self.started, 0.0), None


@dataclass
class RunState:
    """All stages of a run, in their order.

    Attributes:
        recipe: its name.
        stages: by name.
        finished: when the last stage was done, as ISO 8601; None before.
        model: of a hub model its ``name``, the ``revision`` that the recipe says, and the ``commit`` that this was when
            the run began.
    """

    recipe: str
    stages: dict[str, StageState] = field(default_factory=dict)
    finished: str | None = None
    model: dict[str, str | None] | None = None

    @classmethod
    def read(cls, folder: Path) -> RunState | None:
        """What the folder remembers; None where it holds no run.

        Raises:
            InvalidInputError: if the file cannot be read.
        """
        path = folder / STATE_FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            stages = {name: StageState(**stage) for name, stage in record["stages"].items()}
            return cls(record["recipe"], stages, record["finished"], record.get("model"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"{path} cannot be read ({' '.join(str(error).split())}); was it changed? Put it back as it was, or "
                "give another output folder"
            ) from None

    def save(self, folder: Path) -> None:
        """Write it."""
        record: dict[str, Any] = {"kind": "extend", "recipe": self.recipe, "finished": self.finished}
        if self.model is not None:
            record["model"] = self.model
        record["stages"] = {name: asdict(stage) for name, stage in self.stages.items()}
        write_text_atomically(folder / STATE_FILE, json.dumps(record, indent=2) + "\n")


def open_state(folder: Path) -> RunState:
    """The state of the run in a folder.

    Raises:
        RunExistsError: if there is none.
    """
    state = RunState.read(folder)
    if state is None:
        raise RunExistsError(f"{folder} holds no run of a recipe ({STATE_FILE}); give the output of `longrope extend`")
    return state


def is_at_work(folder: Path) -> bool:
    """Whether a process carries out the run in the folder at this moment."""
    return is_locked(folder / LOCK_FILE)


def last_sign(folder: Path) -> float | None:
    """When something was last written below a folder, in seconds since the epoch: how long a killed stage lived."""
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return max(times, default=None)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two settings differ, in words: ``algorithm.population: 64, was 32``."""
    found: list[str] = []
    for key in [*then, *(key for key in now if key not in then)]:
        before, after, name = then.get(key), now.get(key), f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{name}.")
        elif before != after:
            found.append(f"{name}: {_short(after)}, was {_short(before)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
