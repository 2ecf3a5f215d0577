"""Sizes in bytes: units and digits."""

from __future__ import annotations

import pytest

from longrope.sizes import GIB, MIB, format_size


@pytest.mark.parametrize(
    ("size", "estimated", "measured"),
    [
        (12.614 * GIB, "12.6 GiB", "12.61 GiB"),
        (GIB, "1.0 GiB", "1.00 GiB"),
        (307 * MIB, "0.3 GiB", "307 MiB"),
        (102 * MIB, "102 MiB", "102 MiB"),
        (MIB, "1 MiB", "1 MiB"),
        (4096, "4 KiB", "4 KiB"),
        (0, "0 KiB", "0 KiB"),
        (-2 * GIB, "-2.0 GiB", "-2.00 GiB"),
        (-52 * MIB, "-52 MiB", "-52 MiB"),
    ],
)
def test_sizes_in_their_units(size: float, estimated: str, measured: str) -> None:
    assert format_size(size) == estimated
    assert format_size(size, measured=True) == measured
