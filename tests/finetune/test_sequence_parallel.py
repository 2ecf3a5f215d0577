from typing import Any

import pytest
from tiny_models import tiny_config

from longrope.exceptions import InvalidInputError
from longrope.finetune.sequence_parallel import check_sequence_parallel

FLASH = "flash_attention_2"


@pytest.mark.parametrize(
    ("model_type", "changes", "sp", "kernel"),
    [
        ("llama", {}, 2, "sdpa"),
        ("llama", {}, 4, "sdpa"),  # 2 key-value heads, each on two processes
        ("llama", {"num_key_value_heads": 1}, 4, "sdpa"),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 16}, 2, "sdpa"),
        ("mistral", {"sliding_window": None}, 2, "sdpa"),
        ("mistral", {"sliding_window": 256}, 2, "sdpa"),  # longer than a segment
        ("gemma3_text", {}, 2, FLASH),
        ("gpt_neox", {}, 1, "sdpa"),
    ],
)
def test_what_ulysses_can_share(model_type: str, changes: dict[str, Any], sp: int, kernel: str) -> None:
    check_sequence_parallel(tiny_config(model_type, **changes), sp, kernel, 128)


@pytest.mark.parametrize(
    ("model_type", "changes", "sp", "kernel", "message"),
    [
        ("llama", {}, 3, "sdpa", "sp is 3, but the model has 4 query heads"),
        ("llama", {}, 8, "sdpa", "sp is 8, but the model has 4 query heads"),
        (
            "llama",
            {"num_attention_heads": 12, "num_key_value_heads": 3, "hidden_size": 192},
            2,
            "sdpa",
            "3 key-value heads",
        ),
        ("llama", {}, 2, "eager", "use sdpa"),
        ("gpt_neox", {}, 2, "sdpa", "names no key-value heads"),
        ("deepseek_v3", {}, 2, FLASH, "MLA"),
        ("mistral", {"sliding_window": 64}, 2, "sdpa", "attend to 64 tokens only"),
        ("gemma3_text", {}, 2, "sdpa", "attend to 16 tokens only"),
    ],
)
def test_what_ulysses_would_compute_wrongly(
    model_type: str, changes: dict[str, Any], sp: int, kernel: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        check_sequence_parallel(tiny_config(model_type, **changes), sp, kernel, 128)
    assert "\n" not in str(caught.value)
