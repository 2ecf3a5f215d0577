"""Fold adapters, embeddings and norms into the weights of the model that they were trained on.

It is done on the files of the unquantised model, one at a time, so a 70B model needs the memory of one file and no GPU.
A merged weight is computed in float32 and rounded once: the update B A is small beside the weight, and rounding it by
itself to the eight bits of bfloat16, or adding it up there, would lose part of what was learnt.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from longrope.exceptions import FactorsError, SettingsError, UnsupportedModelError
from longrope.export.card import Origin
from longrope.export.folder import refuse_occupied
from longrope.export.huggingface import Exported, export_folder
from longrope.export.recipe import model_name
from longrope.export.weights import INDEX_FILE, NewWeights, weight_files
from longrope.files import let_others_read, write_text_atomically
from longrope.finetune.adapters import BASE_KEY
from longrope.model.load import DTYPES, ModelSource
from longrope.model.rope_config import SCHEDULE_FILE
from longrope.model.weights import fingerprint
from longrope.rope.policy import load_factors

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OUTPUT = "lm_head.weight"
_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Output embeddings that published files name otherwise than transformers does, by model type.
_NAMES_IN_FILES = {"gpt_neox": {_OUTPUT: "embed_out.weight"}}
# What PEFT's LoRA can do besides, and this does not fold in.
_UNKNOWN = (
    "use_dora",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as PEFT saves it; tensors in float32.

    Attributes:
        base: the model it was trained on, a folder or a hub id.
        revision: the commit of that model.
        fingerprint: of that model; None in adapters from elsewhere.
        scaling: what B A is multiplied by.
        low_rank: A (r, in) and B (out, r) by the name of the weight they are added to.
        replaced: embeddings and norms by the name of the weight that they replace.
    """

    base: str | None
    revision: str | None
    fingerprint: str | None
    scaling: float
    low_rank: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    replaced: Mapping[str, torch.Tensor]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read the folder of an adapter.

        Raises:
            SettingsError: if it holds no LoRA adapter in safetensors, or one with more than LoRA and whole modules.
        """
        config = _read_config(folder)
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            pickled = (folder / "adapter_model.bin").exists()
            raise SettingsError(
                f"{folder} holds a pickled adapter, which is never opened; save it with safe_serialization=True"
                if pickled
                else f"{folder} holds no {WEIGHTS_FILE}; give the folder of an adapter"
            )
        metadata, tensors = _read_tensors(path)
        halves: dict[str, dict[str, torch.Tensor]] = {}
        replaced = {}
        for name, tensor in tensors.items():
            known = name.removeprefix(_PREFIX)
            if ".lora_" not in known:
                replaced[known] = tensor
                continue
            layer, _, half = known.rpartition(".lora_")
            halves.setdefault(f"{layer}.weight", {})[half] = tensor
        low_rank = {}
        for name, pair in halves.items():
            if set(pair) != {"A.weight", "B.weight"} or pair["A.weight"].shape[0] != pair["B.weight"].shape[-1]:
                raise SettingsError(f"{path} holds {', '.join(sorted(pair))} for {name}; expected lora_A and lora_B")
            low_rank[name] = (pair["A.weight"], pair["B.weight"])
        rank = int(config["r"])
        return cls(
            base=config.get("base_model_name_or_path"),
            revision=config.get("revision"),
            fingerprint=metadata.get(BASE_KEY),
            scaling=float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank),
            low_rank=low_rank,
            replaced=replaced,
        )

    def fold(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the model with what the adapter does to it; the weight itself where that is nothing."""
        if name in self.replaced:
            new = self.replaced[name]
        elif name in self.low_rank:
            a, b = self.low_rank[name]
            new = weight.float() + self.scaling * (b @ a) if (b.shape[0], a.shape[1]) == weight.shape else b @ a
        else:
            return weight
        if new.shape != weight.shape:
            raise SettingsError(
                f"{name} of the model is {tuple(weight.shape)}, and the adapter has {tuple(new.shape)}; give the model "
                "that it was trained on by --base"
            )
        return new


def merge(
    adapter: str | Path,
    output: str | Path,
    base: ModelSource | None = None,
    *,
    dtype: str = "auto",
    factors: str | Path | None = None,
    without_n_hat: bool = False,
    code: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Write a plain model folder, with the factors, of an adapter and the model it was trained on.

    Args:
        adapter: the folder that :func:`longrope.finetune.adapters.save_adapter` or PEFT wrote.
        output: the folder to write, new or empty.
        base: the model, unquantised; the one that the adapter names when not given.
        dtype: of the merged weights: float32, bfloat16, float16, or ``auto``, each as the model has it.
        factors: JSON; the adapter's longrope.json when not given.
        without_n_hat: see :func:`longrope.export.huggingface.export_folder`, as for ``code``.
        trust_remote_code: run code that lies with the model.

    Raises:
        SettingsError: if the adapter cannot be read, or belongs to another model.
        FactorsError: if there are no factors, they do not fit the model, or need n_hat.
        UnsupportedModelError: if the model cannot be read, or is quantised.
        RunExistsError: if ``output`` exists and is not empty.
    """
    refuse_occupied(Path(output))
    dtype = _ALIASES.get(dtype, dtype)
    if dtype != "auto" and dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype!r} is not known; use auto, {', '.join(_ALIASES)} or {', '.join(DTYPES)}")
    folder = Path(adapter)
    trained = Adapter.read(folder)
    if factors is None and not (folder / SCHEDULE_FILE).exists():
        raise FactorsError(f"{folder} holds no {SCHEDULE_FILE}; give the factors it was trained under by --factors")
    policy = load_factors(folder / SCHEDULE_FILE if factors is None else factors)
    source = base or _stated_base(trained, trust_remote_code)
    model = source.folder()
    config = source.load_config()
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(f"{source.name} is quantised; give the model it was made from by --base")
    if trained.fingerprint is not None and trained.fingerprint != fingerprint(model):
        warnings.warn(
            f"{source.name} is not as it was when the adapter was trained: its weights or its config differ",
            UserWarning,
            stacklevel=2,
        )
    wanted = None if dtype == "auto" else DTYPES[dtype]
    new = NewWeights(write=partial(_write, trained, model, config, wanted), dtype=wanted)
    origin = Origin(
        source=source,
        told="The weights are those of the model with a LoRA adapter folded in, trained under the factors.",
        command=f"merge {folder.name} --base {model_name(source.name)} --dtype {dtype} --output FOLDER",
    )
    return export_folder(source, policy, output, without_n_hat, code=code, new_weights=new, origin=origin)


def _write(adapter: Adapter, model: Path, config: Any, dtype: torch.dtype | None, output: Path) -> None:
    """Write each weight file of ``model`` into ``output`` with the adapter folded in."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    adapter = _with_tied(adapter, config)
    in_files = _NAMES_IN_FILES.get(config.model_type, {})
    here = {file: name for name, file in in_files.items()}
    missing = {*adapter.low_rank, *adapter.replaced}
    total = 0
    for path in weight_files(model):
        if path.name == INDEX_FILE:
            continue
        with safe_open(path, framework="pt") as stream:
            metadata, weights = stream.metadata(), {}
            for name in stream.keys():  # noqa: SIM118  (no dict)
                weight = stream.get_tensor(name)
                known = here.get(name, name)
                merged = adapter.fold(known, weight)
                missing.discard(known)
                weights[name] = merged.to(dtype or weight.dtype) if weight.is_floating_point() else merged
                total += weights[name].nbytes
        save_file(weights, output / path.name, metadata=metadata or {"format": "pt"})
        let_others_read(output / path.name)
    if missing:
        _check_tied(adapter, config, missing)
    index = model / INDEX_FILE
    if index.exists():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"] = {**content.get("metadata", {}), "total_size": total}
        write_text_atomically(output / INDEX_FILE, json.dumps(content, indent=2) + "\n")


def _with_tied(adapter: Adapter, config: Any) -> Adapter:
    """The adapter with its input embeddings as the output's too, for files that hold tied embeddings twice."""
    inputs = adapter.replaced.get("model.embed_tokens.weight")
    if inputs is None or not config.tie_word_embeddings or _OUTPUT in adapter.replaced:
        return adapter
    return replace(adapter, replaced={**adapter.replaced, _OUTPUT: inputs.clone()})


def _check_tied(adapter: Adapter, config: Any, missing: set[str]) -> None:
    """Refuse weights that the model lacks, but for an output projection that it has as its input embeddings."""
    left = sorted(missing)
    output = adapter.replaced.get(left[0])
    if left == [_OUTPUT] and config.tie_word_embeddings and output is not None:
        inputs = [tensor for name, tensor in adapter.replaced.items() if name.endswith("embed_tokens.weight")]
        if any(torch.equal(output, each) for each in inputs):
            return
        raise SettingsError(
            "the adapter has output embeddings of its own, and the model uses its input embeddings for both; train "
            "them tied, by LoraConfig(ensure_weight_tying=True)"
        )
    raise SettingsError(
        f"the model has no {left[0]}, which the adapter was trained on ({len(left)} such weights); give the model that "
        "it was trained on by --base"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder} holds no {CONFIG_FILE}; give the folder of an adapter") from None
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise SettingsError(f"{path} describes an adapter of type {kind!r}; only LORA can be merged")
    numbers = (config.get("r"), config.get("lora_alpha"))
    if not all(isinstance(each, int | float) and each > 0 for each in numbers):
        raise SettingsError(f"{path} has r {numbers[0]!r} and lora_alpha {numbers[1]!r}; expected numbers above 0")
    more = [name for name in _UNKNOWN if config.get(name)]
    more += ["bias"] if config.get("bias", "none") != "none" else []
    more += ["rank_pattern"] if config.get("rank_pattern") else []
    if more:
        raise SettingsError(f"{path} uses {more[0]}, which merge does not know; merge the adapter with PEFT")
    return config


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            return stream.metadata() or {}, {name: stream.get_tensor(name).float() for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def _stated_base(adapter: Adapter, trust_remote_code: bool) -> ModelSource:
    """The model that an adapter names."""
    name = adapter.base
    if not name:
        raise SettingsError("the adapter names no model that it was trained on; give it by --base")
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise SettingsError(f"the adapter was trained on {name}, which is not there; give the model by --base")
    return ModelSource(name, adapter.revision, trust_remote_code=trust_remote_code)
