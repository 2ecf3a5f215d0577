"""The rotary embedding: transformers bit for bit where it should be, float64 where float32 is not enough."""

import numpy as np
import pytest
import torch
from rope_cases import llama_config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from longrope.exceptions import RunFailedError, SettingsError
from longrope.rope.factors import RopeFactors, plain_inv_freq
from longrope.rope.rotary import FLOAT32_LENGTH, RotaryEmbedding, inv_freq_float32

LONG = np.geomspace(1, 40, 16).round(2).tolist()
SHORT = np.linspace(1, 2, 16).round(2).tolist()
K128 = 131072

SCALED = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
}


def factors(lambdas, **changes):
    return RopeFactors(lambdas, 1e4, 2 * len(lambdas), 1024, 4096).replace(**changes)


def turned(pinned, position_ids, length=4096, dtype=torch.float32, mode="exact", native=None, rows=None):
    """Cosine and sine under the pinned factors."""
    rotary = RotaryEmbedding(native, mode)
    rotary.pin(pinned, length)
    return rotary(torch.zeros(rows or len(position_ids), 1, 1, dtype=dtype), position_ids)


def reference(one, position_ids):
    """Float64 angles by numpy, written down apart from the code under test."""
    positions = np.asarray(position_ids, dtype=np.float64)[..., None]
    plain = np.array([one.rope_theta ** (-2 * i / one.rotary_dim) for i in range(one.rotary_dim // 2)])
    angles = np.where(positions < one.n_hat, positions * plain, positions * plain / np.array(one.lambdas))
    angles = np.concatenate((angles, angles), axis=-1)
    return np.cos(angles) * one.attention_factor, np.sin(angles) * one.attention_factor


def assert_same_bits(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


def longrope_module(head_dim=32, **parameters):
    pairs = int(head_dim * parameters.get("partial_rotary_factor", 1.0)) // 2
    return LlamaRotaryEmbedding(
        llama_config(
            "longrope",
            head_dim=head_dim,
            original_max_position_embeddings=1024,
            short_factor=SHORT[:pairs],
            long_factor=LONG[:pairs],
            **parameters,
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lambdas", "length"), [(SHORT, 1024), (LONG, 4096)], ids=["short", "long"])
@pytest.mark.parametrize("partial_rotary_factor", [1.0, 0.75])
@pytest.mark.parametrize("mode", ["hf", "exact"])
def test_longrope_model_bit_for_bit(dtype, lambdas, length, partial_rotary_factor, mode):
    module = longrope_module(partial_rotary_factor=partial_rotary_factor)
    assert module.attention_scaling > 1
    pinned = factors(lambdas[: int(16 * partial_rotary_factor)], attention_factor=module.attention_scaling)
    position_ids = torch.stack((torch.arange(length), torch.arange(length).flip(0)))
    expected = module(torch.zeros(1, dtype=dtype), position_ids)
    assert_same_bits(turned([pinned], position_ids, length, dtype, mode), expected)
    assert torch.equal(inv_freq_float32(pinned), module.inv_freq)


def test_hf_mode_bit_for_bit_above_64k():
    module = longrope_module()
    position_ids = torch.arange(70_000)[None]
    pinned = factors(LONG, attention_factor=module.attention_scaling)
    assert_same_bits(turned([pinned], position_ids, 70_000, mode="hf"), module(torch.zeros(1), position_ids))


def test_autocast_changes_nothing():
    position_ids = torch.arange(512)[None]
    expected = turned([factors(LONG)], position_ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(turned([factors(LONG)], position_ids), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("lambdas", "length"), [(SHORT, 1024), (LONG, 4096)], ids=["short", "long"])
def test_longrope_model_bit_for_bit_on_a_gpu(lambdas, length):
    module = longrope_module().cuda()
    position_ids = torch.arange(length, device="cuda")[None]
    x = torch.zeros(1, 1, 1, device="cuda")
    rotary = RotaryEmbedding(mode="hf")
    rotary.pin([factors(lambdas, attention_factor=module.attention_scaling)], length)
    assert_same_bits(rotary(x, position_ids), module(x, position_ids))


def native_of(rope_type):
    """A scaled transformers rotary, and the factors that describe it with the module's own frequencies."""
    module = LlamaRotaryEmbedding(llama_config(rope_type, head_dim=32, **SCALED[rope_type]))
    lambdas = plain_inv_freq(1e4, 32) / module.inv_freq.double().numpy()
    present = factors(tuple(lambdas), attention_factor=module.attention_scaling)
    return module, (present, module.inv_freq)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["hf", "exact"])
@pytest.mark.parametrize("rope_type", SCALED)
def test_identity_leaves_a_scaled_model_bit_for_bit(rope_type, mode, dtype):
    module, native = native_of(rope_type)
    position_ids = torch.arange(4096)[None]
    expected = module(torch.zeros(1, dtype=dtype), position_ids)
    again = native[0].replace(target_length=8192, provenance={"from": "elsewhere"})
    assert_same_bits(turned([again], position_ids, 4096, dtype, mode, native), expected)
    later = turned([again.replace(n_hat=7)], position_ids, 4096, dtype, mode, native)
    assert_same_bits([each[:, 7:] for each in later], [each[:, 7:] for each in expected])


def test_native_frequencies_serve_their_own_lambdas_only():
    known = factors(LONG)
    doctored = (known, 1.5 * inv_freq_float32(known))
    position_ids = torch.arange(64)[None]
    other = factors(SHORT)
    assert not torch.equal(turned([known], position_ids, native=doctored)[0], turned([known], position_ids)[0])
    assert_same_bits(turned([other], position_ids, native=doctored), turned([other], position_ids))


@pytest.mark.parametrize("n_hat", [0, 5])
def test_above_64k_angles_are_float64(n_hat):
    ends = [torch.arange(256), torch.arange(K128 - 256, K128), torch.arange((1 << 21) - 256, 1 << 21)]
    position_ids = torch.cat(ends)[None]
    one = factors(LONG, target_length=1 << 21, attention_factor=1.2, n_hat=n_hat)
    expected = reference(one, position_ids)
    for mine, float32, right in zip(
        turned([one], position_ids, 1 << 21), turned([one], position_ids, 1 << 21, mode="hf"), expected, strict=True
    ):
        assert np.abs(mine.numpy() - right).max() < 1e-6
        assert np.abs(float32.numpy() - right).max() > 1e-3


def test_float64_starts_above_the_limit_by_the_pinned_length():
    position_ids = torch.arange(60_000, 60_512)[None]
    one = factors(LONG)
    at = turned([one], position_ids, FLOAT32_LENGTH)
    above = turned([one], position_ids, FLOAT32_LENGTH + 1)
    assert_same_bits(at, turned([one], position_ids, mode="hf"))
    right = reference(one, position_ids)[0]
    assert np.abs(above[0].numpy() - right).max() < 1e-6 < np.abs(at[0].numpy() - right).max()


@pytest.mark.parametrize("mode", ["exact", "hf"])
def test_a_chunk_turns_like_the_whole(mode):
    one = factors(LONG[:4], n_hat=8)
    whole = turned([one], torch.arange(K128)[None], K128, mode=mode)
    for start in (0, 65_500, K128 - 100):  # the second straddles where the computation itself is cut
        chunk = turned([one], torch.arange(start, start + 100)[None], K128, mode=mode)
        assert_same_bits(chunk, [each[:, start : start + 100] for each in whole])


@pytest.mark.parametrize("length", [4096, K128])
def test_positions_below_n_hat_keep_their_plain_angle(length):
    position_ids = torch.arange(64)[None]
    plain = turned([factors([1.0] * 16, attention_factor=1.2)], position_ids, length)
    scaled = turned([factors(LONG, attention_factor=1.2)], position_ids, length)
    mixed = turned([factors(LONG, attention_factor=1.2, n_hat=16)], position_ids, length)
    for start, rest, both in zip(plain, scaled, mixed, strict=True):
        assert torch.equal(both, torch.cat((start[:, :16], rest[:, 16:]), dim=1))
    assert not torch.equal(plain[1][:, 15], scaled[1][:, 15])


def test_n_hat_counts_positions_not_places():
    position_ids = torch.tensor([[20, 3, 4, 5]])
    mixed = turned([factors(LONG, n_hat=4)], position_ids)
    for got, right in zip(mixed, reference(factors(LONG, n_hat=4), position_ids), strict=True):
        np.testing.assert_allclose(got.numpy(), right, atol=1e-5)


@pytest.mark.parametrize("length", [4096, K128])
@pytest.mark.parametrize("shared", [True, False], ids=["shared positions", "own positions"])
@pytest.mark.parametrize("native", [None, (factors(SHORT), inv_freq_float32(factors(SHORT)))], ids=["", "native"])
def test_candidates_in_one_batch_equal_one_by_one(length, shared, native):
    pinned = [
        factors(LONG, n_hat=4, attention_factor=1.1),
        factors(SHORT),
        factors(LONG, n_hat=32),
        factors([1.0] * 16, attention_factor=0.9),
    ]
    position_ids = torch.arange(300)[None] if shared else torch.arange(1200).view(4, 300)
    cos, sin = turned(pinned, position_ids, length, native=native, rows=4)
    assert cos.shape == sin.shape == (4, 300, 32)
    for row, one in enumerate(pinned):
        alone = turned([one], position_ids if shared else position_ids[row : row + 1], length, native=native)
        assert_same_bits((cos[row : row + 1], sin[row : row + 1]), alone)


def test_one_entry_serves_every_row():
    same = torch.arange(50).repeat(3, 1)
    own = same + torch.tensor([[0], [7], [100]])
    for position_ids in (same, own):
        cos, _ = turned([factors(LONG)], position_ids)
        assert cos.shape == (3, 50, 32)
        for row in range(3):
            assert_same_bits([cos[row : row + 1]], turned([factors(LONG)], position_ids[row : row + 1])[:1])
        assert_same_bits([cos], turned([factors(LONG)] * 3, position_ids)[:1])
    assert turned([factors(LONG)], same[:1], rows=3)[0].shape == (1, 50, 32)  # broadcasts, as transformers does


def test_a_new_pin_replaces_the_old_one():
    rotary = RotaryEmbedding()
    x, position_ids = torch.zeros(1, 1, 1), torch.arange(64)[None]
    for one, length in [(factors(LONG), 4096), (factors(SHORT), 4096), (factors(SHORT), K128)]:
        rotary.pin([one], length)
        assert_same_bits(rotary(x, position_ids), turned([one], position_ids, length))


def test_module_holds_nothing_of_a_model():
    rotary = RotaryEmbedding((factors(LONG), inv_freq_float32(factors(LONG))))
    rotary.pin([factors(LONG)], 4096)
    rotary(torch.zeros(1, 1, 1), torch.arange(4)[None])
    assert not list(rotary.parameters())
    assert not list(rotary.buffers())
    assert not rotary.state_dict()


def test_misuse_is_told():
    rotary = RotaryEmbedding()
    with pytest.raises(RunFailedError, match="pin them"):
        rotary(torch.zeros(1, 1, 1), torch.arange(4)[None])
    with pytest.raises(SettingsError, match="exact or hf"):
        RotaryEmbedding(mode="fast")
    rotary.pin([factors(LONG), factors(SHORT)], 4096)
    with pytest.raises(AssertionError, match="2 factors pinned for a batch of 3"):
        rotary(torch.zeros(3, 4, 1), torch.arange(4)[None])
    with pytest.raises(AssertionError, match="different models"):
        rotary.pin([factors(LONG), factors(LONG[:8])], 4096)
