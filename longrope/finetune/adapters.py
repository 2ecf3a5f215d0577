"""Low-rank adapters with embeddings and norms trained in full, as in LongLoRA (arXiv 2309.12307), through PEFT.

Embeddings and norms are PEFT's ``modules_to_save``: copies that are trained and stored beside the adapters, so that
plain PEFT loads what is written here. Names and checks of the architectures need no PEFT.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from longrope.exceptions import SettingsError
from longrope.export.extended import as_schedule
from longrope.export.folder import whole_folder
from longrope.files import let_others_read
from longrope.finetune.attention_projections import attention_projections
from longrope.finetune.settings import ADAPTERS, AdapterSettings
from longrope.model.load import ModelSource
from longrope.model.rope_config import SCHEDULE_FILE
from longrope.model.weights import fingerprint
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import RopePolicy

BASE_KEY = "longrope_base_fingerprint"
"""What the metadata of the adapter file calls the fingerprint of the model that was trained."""
ALL_LINEAR = "all-linear"
_NAME = "default"  # PEFT's, which it leaves out of names in files


def add_adapters(
    model: Any, settings: AdapterSettings, method: str, *, trained_dtype: torch.dtype = torch.float32
) -> Any:
    """Freeze ``model`` and put adapters into it, which are trained instead.

    A policy that is attached to the model, and everything else put on it, stays in force. Adapters start at random:
    seed torch alike on all processes.

    Args:
        model: a transformers causal language model, with its policy attached; 4-bit linear layers for ``qlora``.
        settings: rank, layers, and whether embeddings and norms are trained.
        method: ``lora`` or ``qlora``.
        trained_dtype: of what is trained. float32 where torch casts for the computation by itself (autocast), since an
            update of 2e-5 of its value is lost in bfloat16, which has steps of 4e-3; hidden states keep the dtype of
            the model all the same. The dtype of the model under DeepSpeed, whose optimizer keeps float32 copies.

    Returns:
        PEFT's model around ``model``.

    Raises:
        SettingsError: if PEFT is not installed, or the model lacks the layers named.
    """
    assert method in ADAPTERS, method
    if find_spec("peft") is None:
        raise SettingsError(f"method {method} needs PEFT; pip install 'longrope[finetune]', or use --method full")
    from peft import LoraConfig, get_peft_model

    kept = embeddings_and_norms(model) if settings.train_embeddings_and_norms else None
    tied = kept is not None and bool(model.config.tie_word_embeddings)
    if tied and "embed_tokens" not in (kept or ()):  # the one name of input embeddings that PEFT can tie
        raise SettingsError(
            f"PEFT cannot train the tied embeddings of model type {model.config.model_type!r}; use --method full, or "
            "adapters without embeddings and norms"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(targets(model, settings)),
        modules_to_save=None if kept is None else list(kept),
        ensure_weight_tying=tied,
        task_type="CAUSAL_LM",
    )
    with _quiet_peft():
        peft_model: Any = get_peft_model(model, config, adapter_name=_NAME, autocast_adapter_dtype=False)
    if tied:
        same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert same, "PEFT trains tied embeddings apart"
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(trained_dtype)
    if trained_dtype != model.dtype:
        _keep_dtype_of_hidden_states(model, model.dtype)
    return peft_model


def targets(model: Any, settings: AdapterSettings) -> tuple[str, ...]:
    """Names of the linear layers that get an adapter.

    Left at their default they are the layers of LongLoRA, the projections of attention, however many and whatever
    called the model has them: q_proj, k_proj, v_proj and o_proj in llama, qkv_proj and o_proj in phi3, ...
    ``all-linear`` alone stands, as in PEFT, for every linear layer but the output projection.

    Raises:
        SettingsError: if the model has no linear layer of a name asked for.
    """
    if settings.targets == AdapterSettings().targets:
        return tuple(sorted({name.rsplit(".", 1)[-1] for name in attention_projections(model)}))
    layers = model.base_model.named_modules()
    names = {name.rsplit(".", 1)[-1] for name, module in layers if isinstance(module, torch.nn.Linear)}
    if settings.targets == (ALL_LINEAR,):
        return tuple(sorted(names))
    unknown = [name for name in settings.targets if name not in names]
    if unknown:
        raise SettingsError(
            f"lora target {unknown[0]!r} is no linear layer of model type {model.config.model_type!r}; it has "
            f"{', '.join(sorted(names))}; {ALL_LINEAR} takes all of them"
        )
    return settings.targets


def embeddings_and_norms(model: Any) -> tuple[str, ...]:
    """Names of the modules that LongLoRA trains in full; where embeddings are tied, the input's stand for both."""
    modules = dict(model.named_modules())
    names = {name.rsplit(".", 1)[-1] for name, module in modules.items() if _is_norm(module)}
    embeddings = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        embeddings.append(model.get_output_embeddings())
    names |= {name.rsplit(".", 1)[-1] for name, module in modules.items() if any(module is each for each in embeddings)}
    return tuple(sorted(names))


def quantization(method: str, dtype: torch.dtype, zero: int = 0) -> Any:
    """How ``from_pretrained`` is to quantise the frozen weights; None but for ``qlora``.

    4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314), 4.13 bits a weight, for all linear layers but
    the output projection.

    Args:
        dtype: of the computation, and of what is not quantised.
        zero: stage of DeepSpeed ZeRO.

    Raises:
        SettingsError: without bitsandbytes or a CUDA GPU, and under ZeRO 3.
    """
    if method != "qlora":
        return None
    if zero == 3:
        raise SettingsError(
            "method qlora has 4-bit weights, which ZeRO 3 cannot partition; use --zero 2, or --method lora --zero 3"
        )
    if not torch.cuda.is_available():
        raise SettingsError("method qlora needs a CUDA GPU, and torch sees none; use --method lora")
    if find_spec("bitsandbytes") is None:
        raise SettingsError("method qlora needs bitsandbytes; pip install 'longrope[quant]', or use --method lora")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def save_adapter(
    peft_model: Any,
    source: ModelSource,
    policy: RopePolicy | RopeFactors,
    output: str | Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write the folder of an adapter: what PEFT loads, and the factors in longrope.json.

    It names the model it belongs to, with revision and fingerprint, so that ``longrope merge`` needs nothing else.

    Args:
        peft_model: of :func:`add_adapters`.
        source: what the model was loaded from.
        policy: what it was trained under.
        output: the folder, new or empty.
        state_dict: weights by the names of ``peft_model``, where its own are partitioned.

    Raises:
        RunExistsError: if ``output`` exists and is not empty.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    output, folder = Path(output), source.folder()
    with _quiet_peft():
        found = get_peft_model_state_dict(peft_model, state_dict, _NAME, save_embedding_layers=False)
    # Tied embeddings have two names, and safetensors wants a tensor of its own under each.
    weights = {name: weight.detach().cpu().clone().contiguous() for name, weight in found.items()}
    config = peft_model.peft_config[_NAME]
    schedule = as_schedule(policy, source)
    with whole_folder(output) as written, _stated_base(config, source):
        config.save_pretrained(written)
        metadata = {"format": "pt", BASE_KEY: fingerprint(folder)}
        save_file(weights, written / "adapter_model.safetensors", metadata=metadata)
        let_others_read(written / "adapter_model.safetensors")
        schedule.save(written / SCHEDULE_FILE)
    return output


def _is_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))


def _keep_dtype_of_hidden_states(model: Any, dtype: torch.dtype) -> None:
    """Let float32 embeddings and norms hand on hidden states in the dtype of the frozen weights.

    Otherwise the residual stream, what activation checkpointing keeps of each layer, would take twice the memory.
    """

    def cast(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(dtype)

    output_embeddings = model.get_output_embeddings()
    for module in model.modules():
        copies = getattr(module, "modules_to_save", None)
        if isinstance(copies, torch.nn.ModuleDict) and module is not output_embeddings:
            copies[_NAME].register_forward_hook(cast)


@contextmanager
def _stated_base(config: Any, source: ModelSource) -> Iterator[None]:
    """What the adapter's config says while it is written: where others find its model, and that it is for use."""
    own = config.base_model_name_or_path, config.revision, config.inference_mode
    config.base_model_name_or_path = str(Path(source.name).resolve()) if Path(source.name).is_dir() else source.name
    config.revision, config.inference_mode = source.revision, True
    try:
        yield
    finally:
        config.base_model_name_or_path, config.revision, config.inference_mode = own


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without warnings of what is right: PEFT asks transformers by an older name, and takes models that could tie their
    embeddings, and do not, for models that do.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")
        yield
