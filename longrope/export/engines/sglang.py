"""SGLang: the list is chosen anew for every forward batch, and nothing that is cached is recomputed.

Sources, sgl-project/sglang: layers/rotary_embedding/rope_variant.py (commit 0b1fd02d56f0) and factory.py (commit
108c36c00829), models/llama.py, qwen2.py and qwen3.py (commit 01b5f572b7b6).
"""

from __future__ import annotations

from longrope.export.engines.folder import MSCALES_SET_IT, Folder
from longrope.export.engines.service import NOTHING, Service
from longrope.lengths import format_length

VERSION = "SGLang (rotary embeddings of commit 0b1fd02d56f0)"

_KNOWN = ("llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe")
_INTERLEAVED = ("deepseek_v3", "glm4")


def serve(folder: Folder, longest: int) -> Service:
    """What ``sglang.launch_server`` computes for sequences of at most ``longest`` tokens, each alone in its batch."""
    command = f"python -m sglang.launch_server --model-path {folder.path} --context-length {longest}"
    refused = folder.why_not("SGLang", _KNOWN, _INTERLEAVED)
    if refused is None and folder.parameters.get("partial_rotary_factor", 1.0) != 1.0:
        refused = "SGLang is not known to apply rope type longrope where only a part of each head turns"
    if refused is not None:
        return Service(lambda length: NOTHING, longest, "the cache is kept", (), mismatches=(refused,))
    original = folder.original
    short, long = folder.both_lists(folder.mscales())
    notes = []
    crossing = "never: both lists are the same"
    if longest > original:
        notes.append(
            f"the token at position {original} turns by angle 0 where no later position is in the same pass, as when "
            "it is generated: the engine looks it up in the first row of the long list"
        )
    if longest > original and (short.lambdas, short.attention_factor) != (long.lambdas, long.attention_factor):
        crossing = "the cache is kept: keys of the short list meet queries of the long one"
        command += " --max-running-requests 1 --chunked-prefill-size -1 --disable-radix-cache"
        notes.append(
            f"a batch with any position above {original} takes the long list for all its rows, a chunk or a cached "
            "prefix below it the short one; the flags keep a prompt in one pass of its own, and export with the long "
            "factors alone avoids it all"
        )
    return Service(
        lambda length: long if length - 1 > original else short,  # the last position decides
        longest,
        crossing,
        (command,),
        boundaries=(original, original + 1),
        ignored=folder.other_attention_factors(short.attention_factor, long.attention_factor, remedy=MSCALES_SET_IT),
        notes=(*notes, f"lengths are of sequences alone in their batch, up to {format_length(longest)}"),
    )
