"""Where the weights of an exported folder come from: the files of its model, or weights that take their place."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longrope.exceptions import UnsupportedModelError
from longrope.files import let_others_read

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_SUFFIX = ".safetensors"
MAX_SHARD_SIZE = "5GB"
_FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".onnx")
# The model once more in Mistral's own form, which vLLM would prefer and which knows nothing of the factors.
_FOREIGN_NAMES = ("consolidated", "params.json")


@dataclass(frozen=True, kw_only=True)
class NewWeights:
    """Weights that an exported folder gets instead of those of its model.

    Attributes:
        write: writes the safetensors files, and their index, into the folder it is given.
        dtype: what the config is to say of them; None where that does not change.
    """

    write: Callable[[Path], None]
    dtype: torch.dtype | None


def is_foreign(path: Path) -> bool:
    """Whether a file holds the weights in another form, which knows nothing of the factors or has to be unpickled."""
    return path.name.removesuffix(".index.json").endswith(_FOREIGN) or path.name.startswith(_FOREIGN_NAMES)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, all that its index names, and the index last where there is one.

    A link to nowhere is no file, as an interrupted download leaves it.

    Raises:
        UnsupportedModelError: if there are none, or some that the index names are missing.
    """
    weights = [path for path in sorted(folder.glob(f"*{WEIGHTS_SUFFIX}")) if path.is_file() and not is_foreign(path)]
    if not weights:
        raise UnsupportedModelError(
            f"{folder} holds no *.safetensors weights; convert the model to safetensors first, or add --config-only"
        )
    index = folder / INDEX_FILE
    if not index.exists():
        return weights
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnsupportedModelError(f"{index} is not an index of safetensors; is the folder complete?") from None
    missing = sorted(named - {path.name for path in weights})
    if missing:
        raise UnsupportedModelError(
            f"{folder} lacks the weights {missing[0]}, which its index names; download it again"
        )
    return [*weights, index]


def write_weights(model: Any, folder: Path, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Write the weights of a transformers model as files of at most 5 GB, under the names its published folders have.

    Args:
        model: says how weights are named and which are tied; its own weights may be on other processes.
        folder: receives the files and, if there are several, their index.
        state_dict: the weights by the names of ``model``.
        dtype: floating-point weights are cast to it.
    """
    from transformers import GenerationConfig

    cast = {
        name: weight.detach().to("cpu", dtype if weight.is_floating_point() else None)
        for name, weight in state_dict.items()
        if name not in model.all_tied_weights_keys  # written once, and gathered weights are no longer one tensor
    }
    # Settings of generation that transformers finds odd would stop it from saving; the folder keeps its model's own.
    settings, model.generation_config = model.generation_config, GenerationConfig()
    written = Path(tempfile.mkdtemp(dir=folder))
    try:
        model.save_pretrained(written, state_dict=cast, max_shard_size=MAX_SHARD_SIZE)
        for path in weight_files(written):
            let_others_read(path)
            path.replace(folder / path.name)
    finally:
        model.generation_config = settings
        shutil.rmtree(written, ignore_errors=True)
