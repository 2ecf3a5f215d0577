"""Configurations of tiny random models of every architecture, with attention sharp enough to tell positions apart."""

from __future__ import annotations

from transformers import AutoConfig, LlamaConfig, PretrainedConfig

PARTIAL = ("phi3", "glm4", "gpt_neox", "stablelm")
"""Architectures whose tiny models rotate half of each head."""

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL_AND_GLOBAL = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 16,
}
_SHAPES: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, **_EXPERTS},
    "gemma2": _LOCAL_AND_GLOBAL,
    "gemma3_text": {**_LOCAL_AND_GLOBAL, "final_logit_softcapping": 20.0},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.25, "embedding_multiplier": 2.0},
    "smollm3": {"num_hidden_layers": 3, "no_rope_layers": [1, 1, 0]},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        **_EXPERTS,
    },
}


def rotary_dim(model_type: str) -> int:
    """Rotated dimensions of a head of the tiny model."""
    return 8 if model_type in PARTIAL else 16


def tiny_config(model_type: str, rope: dict[str, object] | None = None, **changes: object) -> PretrainedConfig:
    """2 layers (smollm3 3), 4 heads of 16 dimensions, 64 positions; ``rope`` adds to the rope parameters."""
    partial = {"partial_rotary_factor": 0.5} if model_type in PARTIAL else {}
    parameters: dict[str, object] = {"rope_type": "default", "rope_theta": 10000.0, **partial, **(rope or {})}
    if model_type == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": 1000.0}
        parameters = {"full_attention": parameters, "sliding_attention": local}
    return AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 64,
            "initializer_range": 0.15,
            "sliding_window": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "rope_parameters": parameters,
            **_SHAPES.get(model_type, {}),
            **changes,
        },
    )


def llama_to_measure(inner: int, groups: int, vocabulary: int = 300) -> LlamaConfig:
    """Large enough that plans of its memory can be held against its tensors: 2 layers, 4 heads of 64 dimensions.

    Args:
        inner: width of its MLP.
        groups: heads of keys and values.
    """
    return LlamaConfig(
        hidden_size=256,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        max_position_embeddings=512,
    )
