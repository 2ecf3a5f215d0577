"""llama.cpp: one list for a context, chosen by its size; reads GGUF files only.

Sources, ggml-org/llama.cpp: src/llama-model.cpp (get_rope_factors, rope.scaling.factor), src/llama-context.cpp
(n_ctx_seq, padded to 256; attn_factor) of build 10481, commit 25ae3a9b331f; src/models/llama.cpp (commit 069be0ae22f3).
"""

from __future__ import annotations

import shlex

from longrope.export.engines.folder import Folder
from longrope.export.engines.service import NOTHING, Applied, Service
from longrope.export.gguf import ARCHITECTURES, CONTEXT_STEP, LONG, SHORT
from longrope.export.gguf_file import GGUFFile
from longrope.lengths import format_length

VERSION = "llama.cpp (build 10481, commit 25ae3a9b331f)"

_CONVERTED_TO = {
    "granite": "granite",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "phi3": "phi3",
}  # model type -> GGUF architecture, of those that load factor tensors
_CROSSING = "never: one list for the whole context"


def serve(folder: Folder, longest: int) -> Service:
    """What becomes of a Hugging Face folder, which llama.cpp cannot read as it is."""
    architecture = _CONVERTED_TO.get(folder.model_type)
    path = shlex.quote(str(folder.path))
    commands: tuple[str, ...] = ()
    if architecture is None:
        mismatch = f"llama.cpp loads no rope factors for model type {folder.model_type!r}"
    else:
        carried = "no factor tensors" if architecture != "phi3" else "the lists, but an attention factor of its own"
        mismatch = (
            f"llama.cpp reads GGUF files, and its converter writes {carried} for model type {folder.model_type!r}"
        )
        commands = (
            f"python convert_hf_to_gguf.py {path} --outfile base.gguf",
            f"longrope export gguf --base base.gguf --factors {path}/longrope.json --output model.gguf",
            f"longrope check model.gguf --engine llama.cpp --factors {path}/longrope.json",
        )
    return Service(lambda length: NOTHING, longest, _CROSSING, commands, mismatches=(mismatch,))


def serve_file(file: GGUFFile, longest: int) -> Service:
    """What llama.cpp computes with a GGUF file in a context for sequences of at most ``longest`` tokens."""
    architecture = str(file.value("general.architecture"))
    original = int(_said(file, "rope.scaling.original_context_length", _said(file, "context_length", 0)))
    context = -(-longest // CONTEXT_STEP) * CONTEXT_STEP
    name, tensor = ("long", LONG) if context > original else ("short", SHORT)
    kind = file.value(f"{architecture}.rope.scaling.type", "linear")
    factors = file.tensor(tensor)
    mismatches, notes = [], []
    if architecture not in ARCHITECTURES:
        mismatches.append(f"llama.cpp does not turn every layer of architecture {architecture!r} with factor tensors")
    elif kind != "longrope":
        mismatches.append(f"rope.scaling.type is {kind!r}, so that llama.cpp loads no factor tensors")
    elif factors is None:
        mismatches.append(f"there is no tensor {tensor}, so that llama.cpp applies plain RoPE")
    scale = _said(file, "rope.scaling.factor", _said(file, "rope.scale_linear", 0.0)) or 1.0
    if scale != 1.0:
        notes.append(f"rope.scaling.factor {scale:g} slows all pairs down on top of the factors")
    used = NOTHING
    if factors is not None and not mismatches:
        used = Applied(name, tuple((factors * scale).tolist()), _said(file, "rope.scaling.attn_factor", 1.0))
    notes.append(
        f"all sequences get the {name} list, because a context of {context} tokens (a multiple of {CONTEXT_STEP}) is "
        f"{'above' if context > original else 'not above'} the original length {format_length(original)}"
    )
    if context > original:
        shorter = original // CONTEXT_STEP * CONTEXT_STEP
        notes.append(
            f"contexts of up to {format_length(shorter)} tokens get the short list"
            if shorter
            else f"no context gets the short list: the smallest, {CONTEXT_STEP}, is above {format_length(original)}"
        )
    return Service(
        lambda length: used,
        longest,
        _CROSSING,
        (f"llama-server -m {shlex.quote(str(file.path))} -c {longest} --parallel 1",),
        notes=tuple(notes),
        mismatches=tuple(mismatches),
    )


def _said(file: GGUFFile, name: str, default: float) -> float:
    return float(file.value(f"{file.value('general.architecture')}.{name}", default))
