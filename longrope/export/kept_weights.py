"""Weights that were not trained, as the model's own files have them.

Training may hold weights in another dtype than the files do: of a float16 model, bfloat16 rounds what it never trains.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from longrope.exceptions import UnsupportedModelError
from longrope.export.weights import INDEX_FILE, weight_files


def keep_untrained(written: Path, source: Path, trained: Collection[str]) -> None:
    """Take all weights but the trained ones from the files of ``source``, in the dtype in which they were written.

    Where ``source`` has no safetensors, or the trained weights have other names in files, all stay as they were
    written: rounded at worst, and never without what was trained.

    Args:
        written: a folder with all weights of a model after training, under the names of its published files.
        source: a folder with those from before; a weight that it lacks stays as it was written.
        trained: what names of trained weights end with, ``layers.0.self_attn.q_proj.weight``.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    try:
        before = {name: path for path in _files(source) for name in _names(path)}
    except UnsupportedModelError:
        return
    ends, after = tuple(trained), [name for path in _files(written) for name in _names(path)]
    if not all(any(name.endswith(end) for name in after) for end in ends):
        return
    for path in _files(written):
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata()
            weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  (no dict)
        for name, weight in weights.items():
            if name in before and not name.endswith(ends):
                with safe_open(before[name], framework="pt") as stream:
                    kept = stream.get_tensor(name)
                if kept.shape == weight.shape:
                    weights[name] = kept.to(weight.dtype)
        mode = path.stat().st_mode
        temporary = path.with_suffix(".part")
        save_file(weights, temporary, metadata=metadata)
        temporary.chmod(mode)
        temporary.replace(path)


def _files(folder: Path) -> list[Path]:
    return [path for path in weight_files(folder) if path.name != INDEX_FILE]


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:
        return list(stream.keys())
