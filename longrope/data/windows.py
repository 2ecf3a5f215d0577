"""Which lengths of segments can be trained side by side."""

from __future__ import annotations

from collections.abc import Sequence

from longrope.exceptions import SettingsError
from longrope.lengths import format_length


def check_windows(windows: Sequence[int], length: int, sp_size: int) -> None:
    """Raise SettingsError unless segments can be trained in all of ``windows``.

    Args:
        windows: lengths, in tokens; none for that of a segment alone.
        length: tokens of a segment.
        sp_size: processes that share a sequence.
    """
    if length % sp_size:
        raise SettingsError(
            f"seq-length {format_length(length)} cannot be cut into {sp_size} equal shards; choose an sp that "
            "divides it"
        )
    if windows and max(windows) < length:
        raise SettingsError(
            f"none of the windows {', '.join(map(format_length, windows))} holds a segment of {format_length(length)}; "
            "name one that does beside them"
        )
    for window in windows:
        if window < length and (window < 2 or length // sp_size % window):
            whole = "a segment" if sp_size == 1 else f"a process's share of a segment, {sp_size} sharing one"
            raise SettingsError(
                f"windows of {format_length(window)} do not fill {whole}; name one that divides "
                f"{format_length(length // sp_size)}"
            )
