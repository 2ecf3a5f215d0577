"""What a run knows of its model before, and beside, the workers that load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longrope.model.load import ModelSource, check_attention, resolve_source
from longrope.model.rope_config import ModelRope, read_rope
from longrope.model.weights import fingerprint
from longrope.workers.settings import ExecutionSettings


@dataclass(frozen=True)
class LoadedModel:
    """What the driver knows of a model: everything but its weights."""

    source: ModelSource
    rope: ModelRope
    tokenizer: Any
    fingerprint: str
    config: Any

    def describe(self) -> dict[str, Any]:
        """Which model this is, for provenance."""
        return {
            "name": self.source.name,
            "revision": self.source.revision,
            "model_type": self.config.model_type,
            "fingerprint": self.fingerprint,
        }


def open_model(name: str, execution: ExecutionSettings, revision: str | None = None) -> LoadedModel:
    """Read the config, the RoPE and the tokenizer of a model."""
    source = resolve_source(
        name,
        dtype=execution.dtype,
        device=execution.device,
        attention=execution.attention,
        trust_remote_code=execution.trust_remote_code,
        revision=revision,
        gpus_per_worker=execution.gpus_per_model,
        sp=execution.sp,
        elsewhere=execution.ray_address is not None,
    )
    folder = source.folder()
    config = source.load_config()
    check_attention(config, source.attention)  # here, before evaluators start
    rope = read_rope(config, folder)
    return LoadedModel(source, rope, source.load_tokenizer(), fingerprint(folder), config)


def numeric_settings(model: LoadedModel, execution: ExecutionSettings) -> dict[str, Any]:
    """What decides the bits of a score beside the candidate and the sample."""
    return {
        "dtype": model.source.dtype,
        "device": "cuda" if model.source.device == "auto" else model.source.device.split(":")[0],
        "attention": model.source.attention,
        "threads_per_worker": execution.threads_per_worker,
        **({"sp": execution.sp} if execution.sp > 1 else {}),
    }
