"""Random orders that are the same on every machine, and with every version of every library."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def shuffled(count: int, *key: str | int) -> npt.NDArray[np.int64]:
    """The numbers 0..count-1 in a random order that ``key`` decides.

    A run that is resumed elsewhere must find the order it left, which numpy's and Python's own generators do not
    promise from one version to the next. So: numbers of SplitMix64 (Steele, Lea, Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014), seeded with a hash of ``key``, put in order.

    Returns:
        (count,) int64.
    """
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    numbers = np.arange(1, count + 1, dtype=np.uint64)
    numbers *= np.uint64(0x9E3779B97F4A7C15)  # unsigned products and sums wrap around, as they should
    numbers += np.uint64(seed)
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)
