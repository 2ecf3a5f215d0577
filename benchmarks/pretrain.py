"""Pretrain a Llama of 110 million parameters on long texts, for searches on a model other than the embedded one.

    python benchmarks/pretrain.py --texts BOOKS --output model       # on one GPU
    longrope search model --target-length 4k --data OTHER_BOOKS --held-out 0 --output factors
    longrope evaluate perplexity model --factors factors/factors.json --methods none,pi,ntk,yarn,longrope \\
        --lengths 4k --data MORE_BOOKS --output quality

Its tokenizer is trained on the texts, too. Windows are drawn at random places of the texts, one after the other. With
`--shape tiny` it runs on a CPU. torch, transformers and accelerate do; longrope need not be installed.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

if (spec := find_spec("longrope")) is None or spec.origin is None:  # a folder of that name alone is no package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from longrope.data.documents import read_documents
from longrope.demo.train import train_tokenizer

SHAPES = {
    "110m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Pieces of a stream of ids, at places that the number of the piece decides."""

    def __init__(self, stream: np.ndarray[Any, Any], window: int, count: int, seed: int) -> None:
        self._stream, self._window = stream, window
        self._starts = np.random.default_rng(seed).integers(len(stream) - window + 1, size=count)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        start = self._starts[number]
        ids = torch.from_numpy(self._stream[start : start + self._window].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def build(shape: str, tokenizer: Any, window: int) -> LlamaForCausalLM:
    """With random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            **SHAPES[shape],
            vocab_size=len(tokenizer),
            max_position_embeddings=window,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(model: LlamaForCausalLM, windows: Windows, args: argparse.Namespace) -> None:
    with TemporaryDirectory() as folder:  # for checkpoints, of which there are none
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.steps // 20,
            weight_decay=0.1,
            adam_beta2=0.95,
            bf16=torch.cuda.is_available(),
            logging_steps=max(args.steps // 20, 1),
            save_strategy="no",
            report_to="none",
            seed=args.seed,
        )
        Trainer(model=model, args=settings, train_dataset=windows).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True, help="a file or a folder of documents")
    parser.add_argument("--output", required=True, type=Path, help="folder of the model")
    parser.add_argument("--shape", choices=SHAPES, default="110m")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=64, help="windows of a step")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if torch.cuda.device_count() > 1:
        parser.error("there are several GPUs, and this program is for one; set CUDA_VISIBLE_DEVICES=0")
    texts = [document.text for document in read_documents(args.texts)]
    tokenizer = train_tokenizer(texts, args.vocabulary)
    tokenizer.model_max_length = args.window
    ids = [part for text in texts for part in (*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id)]
    if len(ids) < args.window:
        parser.error(f"the texts of {args.texts} have {len(ids)} tokens; give more, or a shorter --window")
    torch.manual_seed(args.seed)
    model = build(args.shape, tokenizer, args.window)
    seen = args.steps * args.batch * args.window / len(ids)
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {len(ids)} tokens, each seen {seen:.1f} times")
    train(model, Windows(np.array(ids, dtype=np.uint32), args.window, args.steps * args.batch, args.seed), args)
    tokenizer.save_pretrained(args.output)
    model.to(torch.bfloat16).save_pretrained(args.output)
    print(f"saved to {args.output}")


if __name__ == "__main__":
    main()
