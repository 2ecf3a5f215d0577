"""One process of a run, as torchrun starts it: ``python -m longrope.finetune.start FOLDER DEVICE``."""

from __future__ import annotations

import sys
from pathlib import Path

from longrope.finetune.failure import report_failure


def main(folder: Path, device: str) -> int:
    """Train the run in ``folder``; the exit status."""
    try:
        from longrope.finetune.worker import train

        train(folder, device)
    except Exception as error:
        report_failure(folder, error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
