"""Memory of a training step on one device and its host, term by term.

Terms follow from what torch, transformers, PEFT and DeepSpeed hold at the moment where most is held: in the backward
pass of a layer. They are sums of tensors; what the allocator loses between them is not in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from longrope.finetune.hardware import Hardware
from longrope.finetune.model_shape import ModelShape
from longrope.finetune.settings import FinetuneSettings
from longrope.sizes import GIB

_NF4 = 4.127 / 8  # bytes of a weight with double quantisation (QLoRA, arXiv 2305.14314, section 3)
_LOGITS = 1 << 25  # elements of a tile of logits where no tile is chosen, see tiled_loss.py
# DeepSpeed's defaults, in elements.
_BUCKET = 500_000_000
_LIVE = 1_000_000_000  # gathered parameters that ZeRO 3 keeps at a time
_CUDA_LIBRARIES = GIB  # CUDA context, cuBLAS, NCCL
_CPU_LIBRARIES = GIB // 2  # the interpreter with torch and transformers
_HOST_PROCESS = 2 * GIB  # the same, with those of CUDA


@dataclass
class Memory:
    """Bytes by what they are for: on a device, and on a host for all of its devices."""

    device: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)

    @property
    def device_bytes(self) -> float:
        """What one device has to hold."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> float:
        """What one host has to hold."""
        return sum(self.host.values())


def training_memory(shape: ModelShape, settings: FinetuneSettings, hardware: Hardware) -> Memory:
    """What a step holds at its peak; ``settings.zero`` is definite."""
    numbers = _Numbers.of(settings, hardware)
    memory = Memory()
    _states(memory, shape, settings, hardware, numbers)
    _activations(memory, shape, settings, hardware, numbers)
    _buffers(memory, shape, settings, hardware, numbers)
    if hardware.memory is None:  # every process has its device's part in the memory of the host
        memory.host = {name: each * hardware.devices_per_node for name, each in memory.device.items()} | memory.host
        memory.device = {}
    else:
        memory.host["processes"] = _HOST_PROCESS * hardware.devices_per_node
    return memory


@dataclass(frozen=True)
class _Numbers:
    """Bytes of a number: in passes, of frozen and trained weights, of hidden states between layers."""

    passes: int
    frozen: int
    trained: int
    hidden: int

    @classmethod
    def of(cls, settings: FinetuneSettings, hardware: Hardware) -> _Numbers:
        precision = settings.precision
        if precision == "auto":
            precision = "fp32" if hardware.memory is None else "bf16"
        if precision == "fp32":
            return cls(4, 4, 4, 4)
        if settings.zero:
            return cls(2, 2, 2, 2)
        # Without DeepSpeed what is trained is float32, and autocast casts it. Float32 embeddings make float32 hidden
        # states; adapters see to it that they do not.
        return cls(2, 2, 4, 2) if settings.adapts else cls(2, 4, 4, 4)


def _states(
    memory: Memory, shape: ModelShape, settings: FinetuneSettings, hardware: Hardware, numbers: _Numbers
) -> None:
    """Weights, gradients and what the optimizer keeps of each trained weight."""
    zero, devices = settings.zero or 0, hardware.devices
    trained = shape.trained(settings.method, settings.adapter.train_embeddings_and_norms)
    if not settings.adapts:
        weights = float(numbers.trained * shape.parameters)
    else:
        frozen = float(numbers.frozen * shape.parameters)
        if settings.method == "qlora":
            frozen -= (numbers.frozen - _NF4) * shape.linear
        weights = frozen + numbers.trained * trained  # PEFT leaves the frozen originals in place
    gradients = float(numbers.trained * trained)
    moments, copies = 8.0 * trained, 4.0 * trained if zero else 0.0
    if zero:
        moments, copies = moments / devices, copies / devices
    if zero >= 2:
        gradients /= devices
    if zero == 3:
        weights /= devices
    on_host = hardware.devices_per_node if hardware.memory is not None else 1
    optimizer = "optimizer and float32 copies" if zero else "optimizer"
    if settings.offload != "none":
        # With their gradients, in float32.
        memory.host["optimizer, offloaded"] = (moments + copies + 4.0 * trained / devices) * on_host
        moments = copies = 0.0
        if zero >= 2:
            gradients = 0.0
    if settings.offload == "all":
        memory.host["weights, offloaded"] = weights * on_host
        weights = 0.0
    memory.device |= {"weights": weights, "gradients": gradients, optimizer: moments + copies}


def _activations(
    memory: Memory, shape: ModelShape, settings: FinetuneSettings, hardware: Hardware, numbers: _Numbers
) -> None:
    """What the forward pass keeps, what one layer needs to go back, and a tile of logits."""
    options = settings.memory
    tokens = settings.micro_batch * settings.seq_length / settings.sp
    stream = numbers.hidden * shape.hidden * tokens
    attention, mlp, mlp_gradients = _layer(shape, settings, numbers, tokens)
    # A norm goes back through five float32 tensors, of which the gradients of the stream, if float32, are two.
    norm_gradients = (18 - 2 * numbers.hidden) * shape.hidden * tokens
    if options.checkpoint_activations:
        kept = stream * shape.layers
        working = attention + max(mlp + mlp_gradients, norm_gradients) + 2 * stream
        if options.offload_activations and hardware.memory is not None:
            # torch rounds pinned memory up to powers of two; a layer's input is a block of its own.
            pinned = 2.0 ** math.ceil(math.log2(stream)) * shape.layers
            memory.host["activations, offloaded"] = pinned * hardware.devices_per_node
            kept = min(kept, 2 * stream)  # of a layer at work and of one on its way
    else:
        kept = (attention + mlp + stream) * shape.layers
        working = max(mlp_gradients, norm_gradients) + 2 * stream
    if settings.method == "attention" and numbers.passes != numbers.frozen:
        # Autocast casts what is frozen each time anew, and a pass keeps it to go back through.
        cast = float(numbers.passes * (shape.linear - shape.projections))
        if options.checkpoint_activations:
            working += cast / shape.layers
        else:
            kept += cast
    if settings.method == "qlora":
        working += numbers.passes * 2 * shape.layer / 3  # the largest matrices, dequantised
    positions = min(options.tile_loss or max(_LOGITS // shape.vocabulary, 16), tokens)
    # Log-probabilities and two gradients in float32, and the last in the dtype of the logits.
    loss = positions * shape.vocabulary * (12 if numbers.passes == 4 else 12 + numbers.passes) + 2 * stream
    head_trained = settings.trains_head
    if head_trained:
        loss += 4 * shape.head  # the sum over tiles of the weight's gradients
    at_work = {"one layer at work": working, "logits at work": loss}
    accumulation = settings.global_batch * settings.sp // (settings.micro_batch * hardware.devices)
    if not settings.zero and numbers.passes != numbers.trained and accumulation > 1:  # beside earlier gradients
        trained = shape.trained(settings.method, settings.adapter.train_embeddings_and_norms)
        at_work["weights that autocast cast"] = float(numbers.passes * trained)
    name = max(at_work, key=lambda name: at_work[name])  # one follows the other
    memory.device |= {"activations kept": kept, name: at_work[name]}
    if accumulation == 1:
        # Layer by layer, the activations of one go before the gradients of the next come.
        first = numbers.trained * shape.head if head_trained else 0
        both = min(kept - kept / shape.layers, max(memory.device["gradients"] - first, 0))
        memory.device["not at the same time"] = -both


def _layer(
    shape: ModelShape, settings: FinetuneSettings, numbers: _Numbers, tokens: float
) -> tuple[float, float, float]:
    """Bytes that a layer saves for its backward pass around attention and in its MLP, and gradients in the latter."""
    passes, hidden, full = numbers.passes, shape.hidden, settings.method == "full"
    at_once = min(settings.memory.tile_mlp or tokens, tokens)
    # Two norms compute in float32: of their inputs, the one that is float32 already is kept anyway.
    norms = 4 if numbers.hidden == 4 else 8
    if settings.method != "attention":  # of what they make too, for the gradients of their weights
        norms += 2 * numbers.hidden
    # What linear layers read, if a gradient of a weight needs it; autocast, or PEFT, casts it for each of them.
    if full:
        inputs = 2 * passes if numbers.hidden == passes else 5 * passes
    elif settings.method == "attention":
        inputs = passes if numbers.hidden == passes else 3 * passes
        inputs += numbers.hidden if at_once < tokens else 0
    else:
        inputs = passes if numbers.trained == numbers.frozen else 4 * passes
        inputs += numbers.hidden if at_once < tokens else 0
    queries, keys = shape.heads * shape.key_dim, shape.kv_heads * shape.key_dim
    values, outputs = shape.kv_heads * shape.value_dim, shape.heads * shape.value_dim
    attention = passes * (queries + keys + values + outputs) + 4 * shape.heads
    if settings.sp > 1:  # heads exchanged for positions: the sent and the received
        attention += 2 * passes * (queries + keys + values + outputs)
    width = passes * shape.mlp / hidden / 3  # of a gated MLP, which has three matrices
    mlp, gradients = (4 if full else 3) * width * at_once, 3 * width * at_once
    if at_once < tokens:
        gradients += mlp + passes * hidden * tokens  # computed again tile by tile; the gradient of all its input
        mlp = 0
        if full:
            gradients += 4 * shape.mlp  # sums over tiles of the weights' gradients
    return ((norms + inputs) * hidden + attention) * tokens, mlp, gradients


def _buffers(
    memory: Memory, shape: ModelShape, settings: FinetuneSettings, hardware: Hardware, numbers: _Numbers
) -> None:
    """What communication and libraries take."""
    zero, gpu = settings.zero or 0, hardware.memory is not None
    trained = shape.trained(settings.method, settings.adapter.train_embeddings_and_norms)
    bucket = numbers.passes * (_BUCKET if gpu else min(_BUCKET, trained))  # untouched pages of a CPU cost nothing
    buffers = 0.0
    if zero in (1, 2):
        buffers = 2 * bucket
    elif zero == 3:
        buffers = bucket + numbers.passes * min(shape.parameters, max(_LIVE, 2 * shape.layer))
    elif hardware.devices > 1:
        buffers = numbers.trained * trained  # torch's buckets, as large as the gradients
    memory.device |= {
        "buffers": buffers,
        "libraries": _CUDA_LIBRARIES if gpu else _CPU_LIBRARIES,
    }
