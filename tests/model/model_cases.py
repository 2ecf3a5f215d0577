"""What the tests of model/ share: models that are scaled already, and random tokens."""

import numpy as np
import torch
from tiny_models import rotary_dim

from longrope.model.attach import attached

ORIGINAL, EXTENDED = 64, 256
SHORT = [1.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5]
LONG = [1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1]

SCALED = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "dynamic": {"factor": 4.0},
}


def longrope(pairs=8, **changes):
    """Rope parameters of type longrope for so many pairs."""
    return {
        "rope_type": "longrope",
        "short_factor": SHORT[:pairs],
        "long_factor": LONG[:pairs],
        "original_max_position_embeddings": ORIGINAL,
        "factor": EXTENDED / ORIGINAL,
        **changes,
    }


def scaled_model(make, model_type="llama", kind="default", **changes):
    """A model whose config has a fixed scaling over 64 tokens."""
    longest = ORIGINAL if kind in ("default", "dynamic") else EXTENDED
    return make(
        model_type, **{"rope": {"rope_type": kind, **SCALED[kind]}, "max_position_embeddings": longest, **changes}
    )


def longrope_model(make, model_type="llama", config=None, **changes):
    pairs = rotary_dim(model_type) // 2
    return make(
        model_type,
        rope=longrope(pairs, **changes),
        max_position_embeddings=EXTENDED,
        original_max_position_embeddings=ORIGINAL,
        **(config or {}),
    )


def random_ids(length, rows=1, seed=0, vocabulary=128):
    """Token ids (rows, length) without the special ones."""
    return torch.from_numpy(np.random.default_rng(seed).integers(3, vocabulary, (rows, length)))


@torch.inference_mode()
def logits_of(model, ids, **inputs):
    return model(ids, use_cache=False, **inputs).logits


def under(model, policy, ids, mode="exact", **inputs):
    with attached(model, policy, mode=mode):
        return logits_of(model, ids, **inputs)


def assert_close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def difference(a, b):
    return (a - b).abs().max().item()
