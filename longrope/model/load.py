"""Loading models and tokenizers: where they lie, in which dtype, on which device, with which attention."""

from __future__ import annotations

import logging
import os
import re
import shutil
import textwrap
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from longrope.exceptions import SettingsError, UnsupportedModelError
from longrope.model.architectures import ARCHITECTURES
from longrope.model.offloading import device_map, layers_kept
from longrope.model.scoring_plan import SHARE
from longrope.model.split_model import split_over

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
_CARDS = ["README.md", "LICENSE*", "NOTICE*", "USE_POLICY*"]  # which exported folders carry on
_NEEDED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py", *_CARDS]
_FOREIGN = ["consolidated*", "*/*"]  # the same weights once more, in the form of other programs
_AVAILABLE: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": lambda: torch.cuda.is_available(),
    "mps": lambda: torch.backends.mps.is_available(),
    "xpu": lambda: torch.xpu.is_available(),
}
_VLLM = {"rope_type", "longrope", "short_mscale", "long_mscale"}
"""What transformers does not know of the RoPE parameters in our folders: vLLM reads its attention factors there."""


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it is to be loaded; picklable, so that every worker loads the same.

    Attributes:
        name: a folder or a hub id.
        revision: the hub commit, pinned by the driver; None for a folder.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``mps``, ``xpu``, or ``auto`` to spread over all visible GPUs.
        attention: transformers' attention implementation.
        sp: processes, each with the model on a GPU of its own, that score long samples together.
        share: of the memory of its GPU that it may take.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    attention: str = "sdpa"
    trust_remote_code: bool = False
    sp: int = 1
    share: float = 1.0

    @property
    def on_gpu(self) -> bool:
        """Whether it is loaded on one GPU or several."""
        return self.device == "auto" or self.device.startswith("cuda")

    def folder(self, weights: bool = True) -> Path:
        """The local folder of the model; downloads a hub model that is not in the cache yet.

        Args:
            weights: whether the weights are to be there too.

        Raises:
            UnsupportedModelError: if there is no such folder and no such model on the hub.
        """
        if Path(self.name).is_dir():
            return Path(self.name)
        if os.path.sep in self.name.rstrip("/") and not _is_hub_id(self.name):
            raise UnsupportedModelError(f"model folder {self.name} does not exist; give a folder or a hub id")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(
                    self.name,
                    revision=self.revision,
                    allow_patterns=_NEEDED,
                    ignore_patterns=_FOREIGN if weights else [*_FOREIGN, "*.safetensors"],
                )
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UnsupportedModelError(
                f"model {self.name!r} is neither a folder nor reachable on the hub ({_reason(error)}); give a local "
                "folder, or log in by `hf auth login` if the model is gated or private"
            ) from None

    def load_config(self) -> Any:
        """The transformers config.

        Raises:
            UnsupportedModelError: if the folder holds no usable config.
        """
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        folder = self.folder(weights=False)
        if not (folder / "config.json").is_file():
            raise UnsupportedModelError(f"{folder} holds no config.json; give a Hugging Face model folder")
        try:
            with without_known_keys():
                return AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
        except (ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
            raise UnsupportedModelError(f"{folder}/config.json cannot be used: {_reason(error)}") from None

    def load_tokenizer(self) -> Any:
        """The tokenizer that lies with the model."""
        from transformers import AutoTokenizer

        folder = self.folder(weights=False)
        try:
            with without_known_keys():
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UnsupportedModelError(f"the tokenizer in {folder} cannot be loaded: {_reason(error)}") from None

    def load_model(self) -> Any:
        """The causal language model for scoring: where this source says, in eval mode, without gradients.

        Raises:
            UnsupportedModelError: if the weights cannot be loaded.
            SettingsError: if flash-attn was asked for and is not installed.
        """
        if self.device == "auto" and find_spec("accelerate") is None:
            raise SettingsError("several GPUs for each evaluator need accelerate; run `pip install accelerate`")
        placement: dict[str, Any] = {}
        if self.device == "auto":
            placement = {"device_map": "auto"}
        elif find_spec("accelerate") is not None:
            kept = layers_kept(self.name, self.folder(), DTYPES[self.dtype].itemsize, self.device, self.share)
            if kept is not None:
                placement = {"device_map": device_map(self.load_config(), self.device, kept)}
            elif self.device != "cpu":
                placement = {"device_map": {"": self.device}}  # never the whole model in the memory of the host
        options = {"dtype": DTYPES[self.dtype], "attn_implementation": self.attention, **placement}
        if isinstance(placement.get("device_map"), str) or "disk" in placement.get("device_map", {}).values():
            model = self._load_with_folder(**options)
        else:
            model = self.load_pretrained(**options)
        if not placement:
            model = model.to(self.device)
        model = model.eval().requires_grad_(False)
        setattr(model, SHARE, self.share)
        if self.sp > 1:
            split_over(model, self, self.sp)
        return model

    def _load_with_folder(self, **options: Any) -> Any:
        """With a folder, as long as the model lives, for what is kept on disk and is in none of the model's files:
        tensors that transformers puts together of several.
        """
        folder = mkdtemp(prefix="longrope-")
        try:
            model = self.load_pretrained(offload_folder=folder, **options)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
        return model

    def load_pretrained(self, **options: Any) -> Any:
        """The causal language model, from safetensors only, with all its weights.

        Args:
            options: further arguments of ``from_pretrained``.

        Raises:
            UnsupportedModelError: if the weights cannot be loaded.
            SettingsError: if something that the options ask for is not installed.
        """
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        folder, config = self.folder(), self.load_config()
        if options.get("attn_implementation"):
            check_attention(config, options["attn_implementation"])
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except ImportError as error:
            wanted = options.get("attn_implementation")
            what = f"attention {wanted!r}" if wanted else "this model"
            raise SettingsError(f"{what} cannot be used: {_reason(error)}") from None
        except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
            raise UnsupportedModelError(f"the weights in {folder} cannot be loaded: {_reason(error)}") from None
        model, report = loaded  # as output_loading_info has it
        if report["missing_keys"]:  # transformers would go on with random ones
            missing = sorted(report["missing_keys"])
            raise UnsupportedModelError(
                f"the weights in {folder} lack {missing[0]} ({len(missing)} missing in all); is the folder complete?"
            )
        return model


def resolve_source(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "sdpa",
    trust_remote_code: bool = False,
    revision: str | None = None,
    gpus_per_worker: float = 1,
    elsewhere: bool = False,
    sp: int = 1,
) -> ModelSource:
    """Turn what the user asked for into one definite ModelSource.

    ``auto`` means: device cuda where there is one, otherwise cpu; dtype bfloat16 on a GPU that has it (float16
    otherwise) and float32 on a CPU. A hub id is pinned to the commit it stands for now. With several GPUs for each
    worker the model is spread over them.

    Args:
        elsewhere: the model will be loaded on other machines, so that a GPU asked for need not be one of this machine.
        sp: processes that score long samples together.

    Raises:
        SettingsError: for an unknown dtype, device or attention.
    """
    dtype, device = resolve_numbers(dtype, device, attention, gpus_per_worker, elsewhere)
    if elsewhere and Path(name).is_dir():
        name = str(Path(name).resolve())  # evaluators on a cluster run in folders of their own
    share = min(gpus_per_worker, 1.0) or 1.0
    source = ModelSource(name, revision, dtype, device, attention, trust_remote_code, sp, share)
    folder = source.folder()
    if not Path(name).is_dir() and folder.parent.name == "snapshots":
        source = replace(source, revision=folder.name)
    return source


def resolve_numbers(
    dtype: str, device: str, attention: str, gpus_per_worker: float = 1, elsewhere: bool = False
) -> tuple[str, str]:
    """The definite dtype and device of :func:`resolve_source`, which needs no model for them.

    Raises:
        SettingsError: for an unknown dtype, device or attention.
    """
    check_names(dtype, device, attention)
    if device == "auto":
        if elsewhere and not torch.cuda.is_available():
            raise SettingsError("this machine has no GPU and the cluster may have; say --device cuda or --device cpu")
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device, elsewhere)
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
        if (
            device == "cuda"
            and torch.cuda.is_available()
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            dtype = "float16"
    dtype = _ALIASES.get(dtype, dtype)
    if attention.startswith("flash") and (device == "cpu" or dtype == "float32"):
        raise SettingsError(f"attention {attention!r} needs a GPU and bfloat16 or float16; use sdpa")
    if device == "cuda" and gpus_per_worker == 0:
        raise SettingsError("0 GPUs for each evaluator and device cuda contradict each other; add --device cpu")
    if device == "cuda" and gpus_per_worker > 1:
        device = "auto"
    return dtype, device


def check_names(dtype: str, device: str, attention: str) -> None:
    """Raise SettingsError for a dtype, device or attention that there is not, on any machine."""
    if dtype not in ("auto", *_ALIASES, *DTYPES):
        raise SettingsError(f"dtype {dtype!r} is not known; use auto, {', '.join(_ALIASES)} or {', '.join(DTYPES)}")
    if device.startswith("cuda:"):
        raise SettingsError(
            f"device {device!r} names one GPU, but evaluators get theirs by number; choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if device not in ("auto", *_AVAILABLE):
        raise SettingsError(f"device {device!r} is not known; use auto, {', '.join(_AVAILABLE)}")
    if attention not in ATTENTION:
        raise SettingsError(f"attention {attention!r} is not known; use {', '.join(ATTENTION)}")


def check_attention(config: Any, attention: str, *, eager: bool = True) -> None:
    """Raise SettingsError unless the attention implementation can compute the architecture.

    Args:
        eager: whether the caller could use that instead.
    """
    row = ARCHITECTURES.get(str(getattr(config, "model_type", None)))
    if attention == "sdpa" and row is not None and not row.sdpa:
        # Samples of more than a chunk are scored in tiles under eager too; prompts go through a layer as a whole.
        square = "whose memory grows with the square of a prompt's length (not of a scored text's)"
        instead = f", or eager, {square}" if eager else ", on a GPU"
        raise SettingsError(
            f"attention 'sdpa' cannot compute what model type {row.model_type!r} needs; use flash_attention_2{instead}"
        )


def _check_device(device: str, elsewhere: bool) -> None:
    """Raise SettingsError unless torch has the device here, or it is on other machines."""
    if not elsewhere and not _AVAILABLE[device]():
        raise SettingsError(f"device {device!r} was asked for, but torch sees no such device; use --device cpu")


@contextmanager
def without_known_keys() -> Iterator[None]:
    """Keep transformers from warning of the keys that our folders have for vLLM, and go on with all other warnings."""

    def wanted(record: logging.LogRecord) -> bool:
        told = record.getMessage()
        return not (told.startswith("Unrecognized keys") and set(re.findall(r"'(\w+)'", told)) <= _VLLM)

    logger = logging.getLogger("transformers.modeling_rope_utils")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _reason(error: Exception) -> str:
    """A message from elsewhere on one line, as ours are."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


def _is_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1
