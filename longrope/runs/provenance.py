"""What a result may depend on beside its settings: versions and the machine."""

from __future__ import annotations

import os
import platform

from longrope import __version__


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    import numpy
    import torch
    import transformers

    return {
        "longrope": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }


def machine() -> dict[str, str | int | None]:
    """The machine that the driver runs on."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
    }
