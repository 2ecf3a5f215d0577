"""A finished evaluation as its folder tells it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from longrope.evaluation.run import RECORDS_FILE, RESULTS_FILE, TABLE_FILE
from longrope.exceptions import InvalidInputError


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation.

    Attributes:
        record: ``results.json``.
        table: a row a method and what the suite compares, such as lengths.
        records: a row an item and method.
    """

    folder: Path
    record: dict[str, Any]
    table: pd.DataFrame
    records: pd.DataFrame

    @property
    def suite(self) -> str:
        return str(self.record["suite"])

    @property
    def methods(self) -> list[str]:
        """In the order of the table."""
        return list(dict.fromkeys(map(str, self.table["method"])))

    @property
    def lengths(self) -> list[int]:
        """Of the table; empty where the suite does not compare lengths."""
        return sorted({int(length) for length in self.table["length"]}) if "length" in self.table else []


def open_evaluation(folder: Path) -> EvaluationRun:
    """Read the folder of an evaluation.

    Raises:
        InvalidInputError: if the evaluation has no results yet, or a file of it cannot be read.
    """
    if not (folder / RESULTS_FILE).exists():
        raise InvalidInputError(
            f"{folder} holds an evaluation without results: it is still running, or was stopped; wait for it, or go on "
            "with it by --resume"
        )
    try:
        record = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        # Numbers and text are told apart column by column; an answer such as "NA" is text.
        table = pd.DataFrame(record["results"])
        records = pd.read_csv(folder / RECORDS_FILE, keep_default_na=False, na_values=[""])
        complete = not table.empty and "method" in table and isinstance(record["suite"], str)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{folder / RESULTS_FILE} cannot be read ({' '.join(str(error).split())}); was it changed? run it again"
        ) from None
    if not complete:
        raise InvalidInputError(f"{folder / RESULTS_FILE} has no table of methods ({TABLE_FILE}); run it again")
    for name in table.columns:
        if name not in ("method", "length"):
            table[name] = _numbers(table[name])
    return EvaluationRun(folder, record, table, records)


def _numbers(column: pd.Series) -> pd.Series:
    """A column whose missing numbers are nan; text stays as it is."""
    if any(isinstance(value, (str, list, dict, bool)) for value in column):
        return column
    return pd.to_numeric(column)
