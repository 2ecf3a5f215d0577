"""What a user chooses for a fine-tuning run; every name is also an option of the command line."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from longrope.data.windows import check_windows
from longrope.exceptions import SettingsError
from longrope.schema import STRICT, Length, Lengths, TileLength

SCHEDULES = ("linear", "cosine", "constant")
METHODS = ("full", "attention", "lora", "qlora")
ADAPTERS = ("lora", "qlora")
ATTENTIONS = ("full", "shifted-sparse")
KERNELS = ("auto", "sdpa", "flash_attention_2", "flash_attention_3")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
OWN, SHARED = "own", "shared"
OFFLOADS = ("none", "optimizer", "all")


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What is traded for memory. None of it changes the result beyond rounding.

    Attributes:
        checkpoint_activations: keep only each layer's input, and compute the layer again in the backward pass.
        offload_activations: hold those inputs in the memory of the host.
        tile_mlp: positions of the sequence that pass through an MLP at a time; 0 for all at once.
        tile_loss: positions whose logits exist at a time; 0 for as many as make 128 MiB of logits.
    """

    __pydantic_config__ = STRICT

    checkpoint_activations: bool = True
    offload_activations: bool = False
    tile_mlp: TileLength = 0
    tile_loss: TileLength = 0

    def __post_init__(self) -> None:
        for name in ("tile_mlp", "tile_loss"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name.replace('_', '-')} is {getattr(self, name)}; give 0 or more positions")
        if self.offload_activations and not self.checkpoint_activations:
            raise SettingsError("offload-activations moves checkpointed activations; leave checkpointing on")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Low-rank adapters as in LongLoRA (arXiv 2309.12307).

    Attributes:
        rank: r of each adapter.
        alpha: the update is scaled by alpha / rank.
        targets: names of the linear layers that get one.
        train_embeddings_and_norms: train these as well, in full; without them a longer window is learnt badly.
    """

    __pydantic_config__ = STRICT

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    train_embeddings_and_norms: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise SettingsError(f"lora rank {self.rank} and alpha {self.alpha} must both be at least 1")


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings:
    """Text that is never trained on, whose perplexity is measured before and after.

    Attributes:
        source: a file, a folder or a hub dataset; None for no measurement.
        lengths: lengths in tokens; the original length and the training length when empty.
        samples: documents of each length.
    """

    __pydantic_config__ = STRICT

    source: str | None = None
    field: str = "text"
    split: str = "train"
    lengths: Lengths = ()
    samples: int = 5

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise SettingsError(f"held-out-samples is {self.samples}; give at least 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """One run. Two processes with equal settings and equal data train the same model.

    Attributes:
        model: a folder or a hub id.
        factors: the factor JSON; its factors for ``seq_length`` are trained.
        data: a mixture file, or one source of documents.
        output: the folder of the run.
        seq_length: tokens of a training segment.
        windows: lengths whose windows are trained in turn, micro batch by micro batch; one that is named twice has
            twice the tokens. A window shorter than ``seq_length`` is trained in segments of its own length. One beyond
            the factors is trained ahead, under YaRN's factors for it, in segments of ``seq_length``, and is not kept.
            Only the window of ``seq_length`` when empty.
        attention_factor: ``own``: each window that of its factors; ``shared``: windows shorter than ``seq_length`` that
            of the longest that is trained (LongRoPE's formula for one ahead), because plain transformers applies
            one to short and long texts; or a number for all.
        warmup: steps of linear warm-up.
        global_batch: segments of an optimizer step, over all processes.
        micro_batch: segments that a process holds at a time.
        zero: stage of DeepSpeed ZeRO; 0 trains without DeepSpeed. When None, 0 for one process and 3 for several.
        offload: what ZeRO keeps in host memory: ``none``, ``optimizer``, or ``all`` (the parameters too).
        sp: processes that share one sequence (DeepSpeed Ulysses).
        precision: ``auto`` is bf16 where the GPU has it, fp16 on an older one, fp32 on a CPU.
        method: ``full``; ``attention``: the projections of attention in full, and nothing else, which learns other
            positions and leaves the rest of the model as it is; ``lora`` or ``qlora``.
        attention: ``full``, or LongLoRA's ``shifted-sparse`` while training.
        group: tokens of an attention group of shifted-sparse; a quarter of the segment when 0.
        kernel: what computes attention; ``auto`` takes FlashAttention where it is installed and the GPU has it.
        save_steps: steps between checkpoints; 0 for none but that of the last step, which there always is.
        save_limit: newest checkpoints that are kept.
    """

    __pydantic_config__ = STRICT

    model: str
    factors: str
    data: str
    output: str
    seq_length: Length
    windows: Lengths = ()
    attention_factor: str | float = "own"
    revision: str | None = None
    trust_remote_code: bool = False
    field: str = "text"
    split: str = "train"
    steps: int = 400
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    global_batch: int = 32
    micro_batch: int = 1
    zero: int | None = None
    offload: str = "none"
    sp: int = 1
    precision: str = "auto"
    tf32: bool = True
    method: str = "full"
    attention: str = "full"
    group: TileLength = 0
    kernel: str = "auto"
    adapter: AdapterSettings = AdapterSettings()
    memory: MemorySettings = MemorySettings()
    held_out: HeldOutSettings = HeldOutSettings()
    save_steps: int = 50
    save_limit: int = 2
    log_steps: int = 1
    report_to: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("method", self.method, METHODS)
        _choice("attention", self.attention, ATTENTIONS)
        _choice("kernel", self.kernel, KERNELS)
        _choice("precision", self.precision, PRECISIONS)
        _choice("offload", self.offload, OFFLOADS)
        for name in ("seq_length", "steps", "global_batch", "micro_batch", "sp", "save_limit", "log_steps"):
            _at_least(name, getattr(self, name), 2 if name == "seq_length" else 1)
        for name in ("warmup", "weight_decay", "max_grad_norm", "group", "save_steps"):
            _at_least(name, getattr(self, name), 0)
        if not 0 < self.learning_rate < math.inf:
            raise SettingsError(f"lr is {self.learning_rate}; give a number above 0")
        if not 0 <= self.seed < 1 << 32:
            raise SettingsError(f"seed is {self.seed}; give a whole number from 0 to {(1 << 32) - 1}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SettingsError(f"betas are {self.betas}; give two numbers from 0 to below 1")
        if self.zero not in (None, 0, 1, 2, 3):
            raise SettingsError(f"zero is {self.zero}; give a stage from 0 (no DeepSpeed) to 3")
        if self.offload != "none" and self.zero == 0:
            raise SettingsError(f"offload {self.offload!r} is done by DeepSpeed; add --zero 2 or --zero 3")
        if self.offload == "all" and self.zero in (0, 1, 2):
            raise SettingsError(
                f"offload 'all' moves partitioned parameters, which only ZeRO 3 has; zero is {self.zero}"
            )
        if self.sp > 1 and self.zero == 0:
            raise SettingsError(f"sp {self.sp} is DeepSpeed Ulysses; add --zero 1, 2 or 3")
        check_windows(self.windows, self.seq_length, self.sp)
        chosen = self.attention_factor
        if chosen not in (OWN, SHARED) and not (isinstance(chosen, (int, float)) and 0 < chosen < math.inf):
            raise SettingsError(f"attention factor {chosen!r} is unknown; give {OWN}, {SHARED} or a number above 0")
        if self.method == "qlora" and self.zero == 3:
            raise SettingsError("method 'qlora' has 4-bit weights, which ZeRO 3 cannot partition; use --zero 2")
        if self.warmup > self.steps:
            raise SettingsError(f"warmup is {self.warmup}, longer than the run of {self.steps} steps")
        if self.attention == "full" and self.group:
            raise SettingsError("a group is for --attention shifted-sparse")

    @property
    def trained_windows(self) -> tuple[int, ...]:
        """Lengths whose windows are trained, in turn."""
        return self.windows or (self.seq_length,)

    @property
    def adapts(self) -> bool:
        """Whether adapters around the model are trained, and not weights of its own."""
        return self.method in ADAPTERS

    @property
    def trains_head(self) -> bool:
        """Whether the output projection is trained."""
        return self.method == "full" or (self.adapts and self.adapter.train_embeddings_and_norms)

    def to_json(self) -> str:
        """The settings as a JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FinetuneSettings:
        """Settings that :meth:`to_json` wrote."""
        given: dict[str, Any] = json.loads(text)
        nested = {"adapter": AdapterSettings, "memory": MemorySettings, "held_out": HeldOutSettings}
        for name, kind in nested.items():
            given[name] = kind(**{key: _tuple(value) for key, value in given[name].items()})
        return cls(**{name: _tuple(value) for name, value in given.items()})

    def on(self, processes: int) -> FinetuneSettings:
        """These settings for so many processes, with the stage of ZeRO filled in."""
        if self.zero is not None:
            return self
        several = 2 if self.method == "qlora" else 3
        return replace(self, zero=0 if processes == 1 else several)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name} {value!r} is not known; use {', '.join(allowed)}")


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise SettingsError(f"{name.replace('_', '-')} is {value}; give at least {least}")
