"""What the tests of rope/ share: random factors, and the same scaling as transformers configures it."""

import torch
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from longrope.rope.factors import RopeFactors

positive = st.floats(1e-3, 1e6)
thetas = st.floats(2.0, 1e8)


@st.composite
def any_factors(draw, pairs=None, rope_theta=None, original_length=None):
    """Valid factors of any kind, not monotone as a rule."""
    pairs = pairs or draw(st.integers(1, 8))
    return RopeFactors(
        lambdas=draw(st.lists(positive, min_size=pairs, max_size=pairs)),
        rope_theta=rope_theta or draw(thetas),
        rotary_dim=2 * pairs,
        original_length=original_length or draw(st.integers(1, 1 << 20)),
        target_length=draw(st.integers(1, 1 << 24)),
        n_hat=draw(st.integers(0, 512)),
        attention_factor=draw(positive),
    )


def llama_config(rope_type, rope_theta=1e4, head_dim=64, max_position_embeddings=4096, **parameters):
    return LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        rope_parameters={"rope_type": rope_type, "rope_theta": rope_theta, **parameters},
    )


def theirs(rope_type, seq_len=None, **settings):
    """Inverse frequencies (float64, from float32) and attention factor as transformers computes them."""
    config = llama_config(rope_type, **settings)
    if rope_type == "default":
        inv_freq, attention_factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=seq_len)
    return inv_freq.double().numpy(), attention_factor
