"""Tokenizers of the kinds that people have, trained on the spot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The river runs to the sea, and the sea is never full.",
    "def first(self, text, length):\n        return self.tokens[:length]  # 16384, 32768 and 131072\n",
    "there and back again; here we go, through the thick and the thin of the other weather",
    "Ünïcödé — naïve café, 日本語 and   runs   of    spaces --------- ======== 1234567890",
]
TINY_WINDOW = 8  # all samples are longer than the "model" takes


def _wrap(tokenizer: Tokenizer, frame: str) -> PreTrainedTokenizerFast:
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>") if token in frame]
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=TINY_WINDOW
    )


def _byte_level(frame: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return _wrap(tokenizer, frame)


def _whole_text() -> PreTrainedTokenizerFast:
    """As Llama 2's: merges run over the whole text as if it were one word, after a space put in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return _wrap(tokenizer, "<s> $A")


def _unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return _wrap(tokenizer, "$A </s>")


BUILDERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": lambda: _byte_level("$A"),
    "bytes-bos": lambda: _byte_level("<s> $A"),
    "bytes-bos-eos": lambda: _byte_level("<s> $A </s>"),
    "whole-text-bos": _whole_text,
    "unigram-eos": _unigram,
}


@pytest.fixture(scope="session", params=list(BUILDERS))
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return BUILDERS[request.param]()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds BOS."""
    return BUILDERS["bytes-bos"]()


@pytest.fixture
def fresh_tokenizer() -> PreTrainedTokenizerFast:
    """One that has not warned yet."""
    return BUILDERS["bytes-bos-eos"]()
