"""The embedded model: a small trained Llama, its corpus and its trainer, so that everything runs with no download."""

from pathlib import Path


def model_folder() -> Path:
    """Where the embedded model lies."""
    return Path(__file__).parent / "model"
