"""The record of a run in its folder: what it was asked to do, and by which versions."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longrope.exceptions import OtherRunError, RunExistsError
from longrope.files import write_text_atomically
from longrope.finetune.settings import FinetuneSettings
from longrope.runs.locks import FolderLock
from longrope.runs.provenance import machine

RUN_FILE = "run.json"
FACTORS_FILE = "factors.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"
ADAPTER = "adapter"
_LOCK = "lock"
_OWN = ("logs", _LOCK)  # what a run may have left in its folder before its record

# What a resumed run may do differently, since the trained weights stay the same, but for rounding. Workers read it from
# the record. What saves memory is needed most by a run that stopped for the want of it. Model, factors and data may lie
# elsewhere: the fingerprint and the state of the data in a checkpoint say whether they are the same.
_FREE = ("output", "save_steps", "save_limit", "log_steps", "report_to", "held_out", "memory", "kernel")
_PLACES = ("model", "factors", "data")


@dataclass(frozen=True)
class RunRecord:
    """A run that was started.

    Attributes:
        run: a name that no other run has.
        fingerprint: of the model's weights and the factors.
    """

    run: str
    fingerprint: str
    settings: FinetuneSettings

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record in the folder of a run.

        Raises:
            RunExistsError: if it is not the record of a fine-tuning run.
        """
        try:
            data = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            return cls(data["run"], data["fingerprint"], FinetuneSettings.from_json(json.dumps(data["settings"])))
        except FileNotFoundError:
            raise RunExistsError(
                f"{folder / RUN_FILE} is not there; the output folder has to be one that all machines of the run see"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            file = folder / RUN_FILE
            raise RunExistsError(f"{file} is not the record of a fine-tuning run; give another folder") from None


def lock_of(settings: FinetuneSettings) -> FolderLock:
    """The lock of the run in the output folder; :func:`open_run` takes it."""
    return FolderLock(Path(settings.output) / _LOCK)


def find_run(folder: Path, resume: bool) -> RunRecord | None:
    """The run to go on with, if ``folder`` holds one.

    Raises:
        RunExistsError: if it holds something else, or a run and ``resume`` was not asked for.
    """
    if folder.exists() and not folder.is_dir():
        raise RunExistsError(f"output {folder} is a file; give a folder")
    if (folder / RUN_FILE).exists():
        if not resume:
            raise RunExistsError(
                f"output folder {folder} holds a run already; go on with it by --resume, or choose another"
            )
        return RunRecord.read(folder)
    if folder.exists() and not all(
        path.name in _OWN or path.name.startswith(f".{RUN_FILE}.") for path in folder.iterdir()
    ):
        why = "is not empty and holds no fine-tuning run"
        raise OtherRunError(f"output folder {folder} {why}; choose another", why)
    return None


def open_run(
    settings: FinetuneSettings, fingerprint: str, versions: dict[str, str], resume: bool, lock: FolderLock
) -> RunRecord:
    """Start a run in its output folder, or go on with the one that is there.

    Args:
        fingerprint: of the model's weights and the factors.
        versions: kept in the record.
        lock: of the folder, which is taken before anything is written there.

    Raises:
        RunExistsError: if the folder holds something else, a run that is still going on, or a run and ``resume`` was
            not asked for.
        OtherRunError: if a resumed run was started with other settings.
    """
    record = find_run(Path(settings.output), resume)
    if record is not None:
        _check_same(record, settings, fingerprint)
    lock.acquire()
    run = uuid.uuid4().hex[:16] if record is None else record.run
    return _write(RunRecord(run, fingerprint, settings), versions)


def _write(record: RunRecord, versions: dict[str, str]) -> RunRecord:
    data: dict[str, Any] = {
        "kind": "finetune",
        "run": record.run,
        "fingerprint": record.fingerprint,
        "settings": asdict(record.settings),
        "versions": versions,
        "machine": machine(),
    }
    write_text_atomically(Path(record.settings.output) / RUN_FILE, json.dumps(data, indent=2) + "\n")
    return record


def _check_same(record: RunRecord, settings: FinetuneSettings, fingerprint: str) -> None:
    before, now = asdict(record.settings), asdict(settings)
    for name, value in before.items():
        if name not in (*_FREE, *_PLACES) and now[name] != value:
            why = f"{name.replace('_', '-')} {value}, not {now[name]}"
            raise OtherRunError(
                f"the run in {settings.output} was started with {why}; resume it with the same settings, or choose "
                "another output",
                why,
            )
    if record.fingerprint != fingerprint:
        why = "other weights or factors than those given"
        raise OtherRunError(
            f"the run in {settings.output} was started with {why}; resume it with the same files, or choose another "
            "output",
            why,
        )
