"""A GGUF file of a small Hugging Face llama, on gguf's own map of tensor names; for token ids, without a tokenizer."""

from pathlib import Path

import gguf
import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM


def convert_llama(folder: Path, output: Path, extra: dict[str, np.ndarray] | None = None) -> Path:
    """Write float32 weights; ``extra`` tensors come on top."""
    config = AutoConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(output, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in AutoModelForCausalLM.from_pretrained(folder).float().state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = _pairs_side_by_side(values, heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def _pairs_side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows reordered within each head: transformers turns dimensions i and i + d/2 together, llama.cpp neighbours."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])  # (heads, half, d/2, D)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
