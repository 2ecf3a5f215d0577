"""The embedded model: a small trained Llama, its corpus and its trainer, so that everything runs with no download."""

from pathlib import Path


def model_folder() -> Path:
    """Where the embedded model lies."""
    return Path(__file__).parent / "model"


def model_name(name: str) -> str:
    """The folder or hub id that a user's word for a model stands for; ``demo`` is the embedded model."""
    return str(model_folder()) if name == "demo" else name
