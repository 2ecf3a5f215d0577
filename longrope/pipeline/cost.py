"""From work to operations and time, where the speed of the devices is that of a data sheet."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

from longrope.exceptions import SettingsError
from longrope.finetune.flops import forward_flops
from longrope.finetune.model_shape import ModelShape
from longrope.pipeline.work import Round, Work

LONG_SEGMENT = 64 * 1024
"""Tokens up to which a training segment counts as short."""


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Share of what the devices could do at most that is assumed; none of it was fitted to a recipe.

    Attributes:
        scoring: of the peak, in forward passes. FlashAttention 2 on an A100 reads 100k to 1M tokens of Llama-3-8B at 50
            to 54%; on an H100 cuDNN's kernel alone reaches 54%, FlashAttention 2 34%.
        training: of the peak, in segments over 64k, with what checkpointing computes again counted as work. torchtitan
            19 to 21% (128k, 256k), DeepSpeed ALST 29 to 30% (160k to 3.7M): the systems that are most like this one,
            worked out from their tokens/s. EasyContext reaches 33 to 52%.
        short_training: the same in shorter segments: torchtitan 37% (32k), EasyContext 50% (64k).
        generation: of the memory's bandwidth, while tokens are written one by one by transformers. Not measured.

    Raises:
        SettingsError: if one is not above 0 and at most 1.
    """

    scoring: float = 0.5
    training: float = 0.25
    short_training: float = 0.4
    generation: float = 0.2

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 < value <= 1:
                raise SettingsError(f"utilisation {each.name} is {value:g}; give a share above 0 and at most 1")

    @classmethod
    def parse(cls, text: str) -> Utilisation:
        """``0.4`` of the peak in all work, or single ones: ``scoring=0.5,training=0.3``.

        Raises:
            SettingsError: if it says neither.
        """
        names = tuple(each.name for each in fields(cls))
        given: dict[str, float] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            name, equals, number = part.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if value < 0 or (equals and name not in names):
                raise SettingsError(
                    f"utilisation {part!r} is not understood; write 0.4, or scoring=0.5,training=0.3 with the names "
                    f"{', '.join(names)}"
                )
            given |= {name: value} if equals else dict.fromkeys(names[:3], value)
        return replace(cls(), **given)

    def of_training(self, length: int) -> float:
        """That of a training segment of ``length`` tokens."""
        return self.training if length > LONG_SEGMENT else self.short_training


def piece_flops(shape: ModelShape, work: Work) -> float:
    """Operations of one piece."""
    return work.passes * forward_flops(shape, work.length, work.predicted + work.written)


def rounds_flops(shape: ModelShape, rounds: Iterable[Round]) -> float:
    """Operations of all pieces."""
    return sum(work.count * piece_flops(shape, work) for each in rounds for work in each)


def cache_bytes(shape: ModelShape, length: int, number: int) -> float:
    """K and V of ``length`` tokens in all layers.

    Args:
        number: bytes of a number.
    """
    return float(number) * shape.layers * shape.kv_heads * (shape.key_dim + shape.value_dim) * length


def piece_seconds(
    shape: ModelShape, work: Work, number: int, peak: float, bandwidth: float, utilisation: Utilisation
) -> float:
    """Time of one piece on one GPU.

    A token that is written needs all weights, and K and V three times: transformers copies them into a tensor that
    is longer by one token, and attention reads them.

    Args:
        number: bytes of a number.
        peak: FLOP/s.
        bandwidth: bytes per second.
    """
    read = replace(work, length=work.length - work.written, written=0)
    seconds = piece_flops(shape, read) / (peak * utilisation.scoring)
    moved = number * shape.parameters + 3 * cache_bytes(shape, work.length, number)
    return seconds + work.written * moved / (bandwidth * utilisation.generation)


def rounds_seconds(rounds: Iterable[Round], workers: int, seconds: Callable[[Work], float]) -> float:
    """Time of rounds on workers that take the next piece as soon as they are done, long ones first.

    Args:
        seconds: time of one piece on one worker, while the others work too.
    """
    return sum(_makespan([(seconds(work), work.count) for work in each], workers) for each in rounds)


def _makespan(pieces: Sequence[tuple[float, int]], workers: int) -> float:
    busy_until = [0.0] * workers
    for seconds, count in sorted(pieces, reverse=True):
        for _ in range(count):
            heapq.heapreplace(busy_until, busy_until[0] + seconds)
    return max(busy_until)
