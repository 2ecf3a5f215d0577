"""Which kind of run a folder holds, and its section of a report."""

from __future__ import annotations

import json
from pathlib import Path

from longrope.evaluation.run import JOURNAL_FILE as EVALUATION_JOURNAL
from longrope.evaluation.run import RESULTS_FILE
from longrope.exceptions import InvalidInputError, SettingsError
from longrope.finetune.run_record import RUN_FILE
from longrope.pipeline.state import STATE_FILE, open_state
from longrope.report.content import Section
from longrope.report.evaluation_run import open_evaluation
from longrope.report.evaluation_section import evaluation_section
from longrope.report.extend_section import extend_section
from longrope.report.finetune_run import open_finetune
from longrope.report.finetune_section import finetune_section
from longrope.report.search_run import open_search
from longrope.report.search_section import search_section
from longrope.search.run import FACTORS_FILE, WINDOW_JOURNALS
from longrope.search.run import JOURNAL_FILE as SEARCH_JOURNAL


def sections_of(folder: Path) -> list[Section]:
    """The section of the run in a folder; of a readjustment one for each window.

    Raises:
        InvalidInputError: if the folder holds no run, one without results, or one that cannot be read.
    """
    if not folder.exists():
        raise SettingsError(
            f"run {folder} does not exist; give the folder of a search, a fine-tuning run or an evaluation"
        )
    if not folder.is_dir():
        raise SettingsError(f"run {folder} is a file; give the folder that it lies in")
    try:
        if (folder / STATE_FILE).exists():
            state = open_state(folder)
            parts = [each for name in state.stages for each in _sections_of_stage(folder / name)]
            return [extend_section(folder, state), *parts]
        if (folder / EVALUATION_JOURNAL).exists() or (folder / RESULTS_FILE).exists():
            return [evaluation_section(open_evaluation(folder))]
        if _is_finetune(folder):
            return [finetune_section(open_finetune(folder))]
        windows = sorted(
            {journal.parent for journal in folder.glob(WINDOW_JOURNALS)}, key=lambda each: (len(each.name), each.name)
        )
        if windows:
            return [search_section(open_search(window)) for window in windows]
        if (folder / SEARCH_JOURNAL).exists() or (folder / FACTORS_FILE).exists():
            return [search_section(open_search(folder))]
    except InvalidInputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{folder}: a file of this run does not have the content that longrope writes ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); was it changed, or written by another version?"
        ) from error
    raise SettingsError(
        f"{folder} holds no run; give the folder of a search, a fine-tuning run or an evaluation (its --output)"
    )


def _sections_of_stage(folder: Path) -> list[Section]:
    """Those of a stage that has something to show by now."""
    try:
        return sections_of(folder)
    except SettingsError:  # an export, or a stage that was not begun
        return []


def _is_finetune(folder: Path) -> bool:
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("kind") == "finetune"
