"""Sizes in bytes, as people read them."""

from __future__ import annotations

MIB = 2**20
GIB = 2**30


def format_size(size: float, *, measured: bool = False) -> str:
    """Bytes in the largest unit that says something: ``12.6 GiB``, ``0.3 GiB``, ``52 MiB``, ``4 KiB``.

    Args:
        measured: the size is no estimate, and worth three digits: ``12.61 GiB``, ``307 MiB``.
    """
    least, places = (GIB, 2) if measured else (GIB / 10, 1)
    if abs(size) >= least:
        return f"{size / GIB:.{places}f} GiB"
    if abs(size) >= MIB:
        return f"{size / MIB:.0f} MiB"
    return f"{size / 1024:.0f} KiB"
