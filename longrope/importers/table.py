"""Tables of factors as CSV: one row of rotary_dim / 2 numbers, or the same row once for every layer.

The second is the form of the factors that microsoft/LongRoPE publishes: 32 equal rows of 64 for LLaMA2-7B, absolute
over plain rope_theta like our lambdas. Such a table names neither its model nor a length nor an attention factor.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from longrope.exceptions import FactorsError
from longrope.importers.imported import Imported, finish
from longrope.rope import attention_factor as rules
from longrope.rope.factors import RopeFactors


@dataclass(frozen=True)
class Table:
    """The numbers of a table.

    Attributes:
        lambdas: of one row.
        rows: how many equal rows there were.
    """

    lambdas: tuple[float, ...]
    rows: int


def read_table(path: str | Path) -> Table:
    """Read the numbers of a CSV file; blank lines do not count.

    Raises:
        FactorsError: if the file cannot be read or is empty, a cell holds no number above 0, or rows differ.
    """
    first: tuple[float, ...] = ()
    rows = 0
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            for number, cells in enumerate(csv.reader(stream, skipinitialspace=True, strict=True), 1):
                if not any(cell.strip() for cell in cells):
                    continue
                row = tuple(_value(cell, f"{path}: row {number}, column {at}") for at, cell in enumerate(cells, 1))
                first = first or row
                _check_same(row, first, f"{path}: row {number}")
                rows += 1
    except OSError as error:
        raise FactorsError(f"table {path} cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise FactorsError(f"table {path} is not a CSV file in UTF-8: {error}") from None
    if not rows:
        raise FactorsError(f"table {path} is empty; give one row of rotary_dim / 2 numbers, or the same row per layer")
    return Table(first, rows)


def import_table(
    path: str | Path,
    base: RopeFactors,
    target_length: int,
    attention_factor: str | float = "su",
    n_hat: int = 0,
    present: float = 1.0,
) -> Imported:
    """Factors from a table, with what the table does not say.

    Args:
        path: a CSV file.
        base: plain RoPE of the model: rope_theta, rotary_dim and the original length.
        target_length: tokens the factors are meant for.
        attention_factor: "su" (as the released code of LongRoPE), "yarn", "present", "none" or a number.
        n_hat: start tokens that keep their plain angle.
        present: the attention factor of the model as it is.

    Raises:
        FactorsError: if the table cannot be used, or not for this model.
        SettingsError: if the attention factor is none of those.
    """
    table = read_table(path)
    if len(table.lambdas) != len(base.lambdas):
        raise FactorsError(
            f"{path}: {len(table.lambdas)} columns, but the model rotates {base.rotary_dim} dimensions of a head and "
            f"needs {len(base.lambdas)}; give a table that was made for it"
        )
    value = rules.resolve(attention_factor, target_length / base.original_length, base.original_length, present)
    factors = base.replace(lambdas=table.lambdas, target_length=target_length, n_hat=n_hat, attention_factor=value)
    description = f"table of {table.rows} equal rows" if table.rows > 1 else "table of one row"
    rule = f" ({attention_factor})" if isinstance(attention_factor, str) and attention_factor in rules.NAMES else ""
    note = f"attention factor {value:.6g}{rule}; a table does not name one"
    return finish(factors, Path(path), Path(path).name, description, (note,))


def _value(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise FactorsError(f"{where} holds {cell.strip()!r}; expected a number above 0") from None
    if not 0 < value < math.inf:
        raise FactorsError(f"{where} holds {cell.strip()}; expected a finite number above 0")
    return value


def _check_same(row: tuple[float, ...], first: tuple[float, ...], where: str) -> None:
    if len(row) != len(first):
        raise FactorsError(f"{where} has {len(row)} columns, the first row {len(first)}; all rows must be equal")
    for column, (value, expected) in enumerate(zip(row, first, strict=True), 1):
        if value != expected:
            raise FactorsError(
                f"{where}, column {column} holds {value:g} and the first row {expected:g}; factors that differ "
                "between layers cannot be used, all rows must be equal"
            )
