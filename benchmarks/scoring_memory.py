"""Peak resident memory and time of scoring one long sample on the embedded model, above the loaded model (Linux).

python benchmarks/scoring_memory.py --length 32768
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch

from longrope.demo import model_folder
from longrope.demo.corpus import standard_library
from longrope.lengths import parse_length
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.model.score import perplexity, score_blocks
from longrope.rope.methods import yarn


def status_mib(name: str) -> float:
    """A memory figure of this process from /proc, in MiB."""
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=parse_length, default=32768)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = ModelSource(str(model_folder()))
    tokenizer, model = source.load_tokenizer(), source.load_model()
    rope = read_rope(source.load_config(), source.folder())
    ids: list[int] = []
    for module in standard_library():
        if module.held_out:
            ids += tokenizer(module.text, verbose=False)["input_ids"]
        if len(ids) >= args.length:
            break
    tokens = np.array(ids[: args.length], dtype=np.int32)
    factors = yarn(rope.present, args.length)
    score_blocks(model, tokens[:512], [factors])  # what the first call allocates for good is part of a loaded model
    loaded = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    started = time.perf_counter()
    nll = score_blocks(model, tokens, [factors])[0]
    seconds = time.perf_counter() - started
    print(
        f"{len(tokens)} tokens, {args.threads} thread(s): {seconds:.1f} s, perplexity under YaRN "
        f"{perplexity(float(nll.sum()), len(tokens) - 1):.3f}"
    )
    print(f"resident with the model loaded {loaded:.0f} MiB, peak above it {status_mib('VmHWM') - loaded:.0f} MiB")


if __name__ == "__main__":
    main()
