"""The rotary embedding that honours lambdas, n_hat and pinned windows; a drop-in for transformers' rotary modules.

Angles grow with the position, and a float32 product keeps 24 bits of it: at 2M positions it is off by up to 6e-2
radians. So in mode "exact" sequences above 64k tokens get float64 angles, cast last. Mode "hf" does what transformers
does at every length, bit for bit, to measure what a deployment will compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from longrope.exceptions import RunFailedError, SettingsError
from longrope.rope.factors import RopeFactors, plain_inv_freq

Mode = Literal["exact", "hf"]

FLOAT32_LENGTH = 65536
"""Tokens up to which float32 angles are taken, as transformers does."""

_CHUNK = 65536  # positions whose angles are held at a time


def inv_freq_float32(factors: RopeFactors, device: torch.device | None = None) -> torch.Tensor:
    """Inverse frequencies in float32, (rotary_dim / 2,), bit-identical with transformers' rope_type "longrope".

    The operations and their order are those of transformers, whatever n_hat and attention factor are.
    """
    lambdas = torch.tensor(factors.lambdas, dtype=torch.float32, device=device)
    dim = factors.rotary_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    return 1.0 / (lambdas * factors.rope_theta**exponents)


def cos_sin(
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    plain: torch.Tensor,
    n_hat: torch.Tensor | None,
    attention_factor: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every position and pair, both halves of the dimensions alike.

    Shapes: R rows (or 1 that serves all), T positions, h = rotary_dim / 2 pairs.

    Args:
        positions: (R, T) integers.
        inv_freq: (R or 1, h) radians per position; its dtype, float32 or float64, is that of the angles.
        plain: (h,) the same for plain RoPE, in the dtype of inv_freq.
        n_hat: (R or 1, 1) positions below it turn by ``plain``; None where no row has such positions.
        attention_factor: (R or 1, 1, 1, 1) multiplies both before the cast.
        dtype: of the result.

    Returns:
        cos and sin, each (rows, T, 2 h) with rows the greater of those of positions and inv_freq.
    """
    rows, length, pairs = max(positions.shape[0], inv_freq.shape[0]), positions.shape[1], inv_freq.shape[1]
    cos = torch.empty(rows, length, 2, pairs, dtype=dtype, device=positions.device)
    sin = torch.empty_like(cos)
    for start in range(0, length, _CHUNK):
        chunk = positions[:, start : start + _CHUNK, None]  # (R, C, 1)
        rates = inv_freq[:, None]  # (R, 1, h)
        if n_hat is not None:
            rates = torch.where(chunk < n_hat[:, None], plain, rates)  # (R, C, h)
        angles = (chunk.to(inv_freq.dtype) * rates)[:, :, None]  # (R, C, 1, h)
        if angles.dtype == torch.float32:
            # Doubled first, as transformers does: vectorised kernels need not give both shapes the same bits.
            angles = angles.repeat(1, 1, 2, 1)  # (R, C, 2, h)
        cos[:, start : start + _CHUNK] = angles.cos().mul_(attention_factor)
        sin[:, start : start + _CHUNK] = angles.sin_().mul_(attention_factor)
    return cos.flatten(2), sin.flatten(2)


class RotaryEmbedding(torch.nn.Module):
    """Cosine and sine of positions under pinned factors.

    The factors of a sequence follow from its full length and are pinned before the forward pass, so that a chunk or
    a shard, which sees only its own positions, turns like the whole.

    Args:
        native: the factors of the model as it is, with its own float32 inverse frequencies (rotary_dim / 2,). These
            are used as they are in float32 wherever pinned lambdas equal the native ones, so that identity factors
            leave a model that is already scaled bit-identical.
        mode: "exact" takes float64 angles above 64k tokens; "hf" computes as transformers does at every length.
        layers: the layer type that is rescaled, where a model asks its rotary module by layer type.
        others: the rotary module of all other layer types.

    Raises:
        SettingsError: if the mode is unknown.
    """

    def __init__(
        self,
        native: tuple[RopeFactors, torch.Tensor] | None = None,
        mode: Mode = "exact",
        layers: str | None = None,
        others: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise SettingsError(f"rotary mode {mode!r} is unknown; give {' or '.join(get_args(Mode))}")
        self.native = native
        self.mode = mode
        self.layers = layers
        self.others = others
        self.factors: tuple[RopeFactors, ...] = ()
        self.length = 0
        self._inv_freq: dict[tuple[torch.device, bool, bool], tuple[torch.Tensor, torch.Tensor]] = {}

    def pin(self, factors: Sequence[RopeFactors], length: int) -> None:
        """Use these factors until the next pin.

        Args:
            factors: one for every row of the batch, or a single one for all rows.
            length: full length of the sequences in tokens, whatever part of them a forward pass will see.
        """
        assert factors, "nothing to pin"
        assert length >= 1, length
        assert len({(each.rotary_dim, each.rope_theta) for each in factors}) == 1, "factors of different models"
        factors = tuple(factors)
        if factors != self.factors:
            self._inv_freq = {}  # and not clear(): a replica of data parallelism shares it until then
        self.factors = factors
        self.length = length

    @torch.no_grad()
    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for the positions of a batch.

        Args:
            x: (B, T, ...) tells the dtype and the device, and the rows where each has its own factors.
            position_ids: (B, T), or (1, T) for positions that all rows share.
            layer_type: whose cosine and sine are asked for, in models whose layers differ.

        Returns:
            cos and sin, each (rows, T, rotary_dim), laid out as two equal halves; as many rows as position_ids, or
            as factors where each row has its own.

        Raises:
            RunFailedError: if nothing is pinned.
        """
        if layer_type != self.layers:
            assert self.others is not None, f"no rotary module for layers of type {layer_type!r}"
            elsewhere: tuple[torch.Tensor, torch.Tensor] = self.others(x, position_ids, layer_type)
            return elsewhere
        if not self.factors:
            raise RunFailedError("the rotary embedding has no factors yet; pin them before the forward pass")
        own = len(self.factors) > 1
        rows = len(self.factors) if own else position_ids.shape[0]
        assert not own or rows == x.shape[0], f"{rows} factors pinned for a batch of {x.shape[0]} rows"
        assert position_ids.shape[0] in (1, rows), f"{position_ids.shape[0]} rows of positions for {rows} factors"

        factors = self.factors[:1] if all(each == self.factors[0] for each in self.factors) else self.factors
        if len(factors) == 1 and _rows_are_equal(position_ids):
            position_ids = position_ids[:1]
        device = torch.device("cpu") if x.device.type == "mps" and self._wide else x.device  # MPS has no float64
        inv_freq, plain = self._frequencies(factors, device)
        starts = torch.tensor([each.n_hat for each in factors], device=device)
        scales = torch.tensor([each.attention_factor for each in factors], dtype=inv_freq.dtype, device=device)
        cos, sin = cos_sin(
            position_ids.to(device),
            inv_freq,
            plain,
            starts[:, None] if any(each.n_hat for each in factors) else None,
            scales[:, None, None, None],
            x.dtype,
        )
        return cos.to(x.device).expand(rows, -1, -1), sin.to(x.device).expand(rows, -1, -1)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, length={self.length}, rows={len(self.factors)}"

    @property
    def _wide(self) -> bool:
        """Whether angles are formed in float64: decided by the full length, never by the positions seen."""
        return self.mode == "exact" and self.length > FLOAT32_LENGTH

    def _frequencies(self, factors: tuple[RopeFactors, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Inverse frequencies of the factors, (R, d/2), and of plain RoPE, (d/2,)."""
        key = (device, self._wide, self.length > factors[0].original_length)
        if key not in self._inv_freq:
            first = factors[0]
            if self._wide:
                rows = [torch.from_numpy(each.inv_freq()) for each in factors]
                plain = torch.from_numpy(plain_inv_freq(first.rope_theta, first.rotary_dim))
            else:
                rows = [self._float32(each, device) for each in factors]
                plain = inv_freq_float32(first.replace(lambdas=(1.0,) * len(first.lambdas)))
            self._inv_freq[key] = torch.stack(rows).to(device), plain.to(device)
        return self._inv_freq[key]

    def _float32(self, factors: RopeFactors, device: torch.device) -> torch.Tensor:
        if self.native is not None:
            known, inv_freq = self.native
            if (known.lambdas, known.rope_theta) == (factors.lambdas, factors.rope_theta):
                return inv_freq.to(device=device, dtype=torch.float32)
        # transformers computes the long list where the model runs and the short one on the CPU; powers differ in bits.
        long = self.length > factors.original_length
        return inv_freq_float32(factors, device if long else None).to(device)


def _rows_are_equal(position_ids: torch.Tensor) -> bool:
    return position_ids.shape[0] == 1 or position_ids.stride(0) == 0 or bool((position_ids == position_ids[:1]).all())
