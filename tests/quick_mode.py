"""How a laptop runs the commands of the documentation in seconds, without a GPU and without the network.

What a laptop has not lies in the folder of the run under its own name, only smaller: models, books, mixtures. Lengths
shrink together, and a search has few candidates. All else of a command is as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer
from tiny_search import text, write_model
from transformers import AutoTokenizer

from longrope.cli.main import app
from longrope.data.yaml_file import Section, read_yaml
from longrope.demo import model_folder
from longrope.lengths import parse_length
from longrope.pipeline.recipe import ready_recipes
from longrope.pipeline.stages import stage_name

# What is laid out

WINDOW, ORIGINAL_WINDOW = 256, 4096
"""Of the model that stands for LLaMA2, and of LLaMA2."""
MODELS = ("meta-llama/Llama-2-7b-hf",)
DOCUMENTS = ("books", "other-books", "emozilla/pg19", "DKYoon/SlimPajama-6B")
FILES = {
    "mixture.yaml": "sources: {books: {path: books}}\n",
    "table.csv": ",".join(str(1 + pair / 2) for pair in range(8)),
}
GGUF_FILES = ("llama-2-7b.gguf",)

# What is written in other words

RECIPE = "mine.yaml"
"""Holds the recipe that a page shows."""
PLACEHOLDERS = {"RECIPE": (RECIPE,), "[KEY=VALUE]...": (), "RUN": ("runs/mine",)}
PYTHON = {'"cuda"': '"cpu"', "max_new_tokens=500": "max_new_tokens=5", '["seed=1"]': '["seed=1", *quick]'}
NOT_RUN = {
    "--ray-address": "wants a Ray cluster",
}
"""Words of commands that are only looked at, and why."""
EXIT_CODES = {"check": (0, 1)}
"""Of commands that may end with another than 0: 1 is an answer of `check`."""

# What is smaller

OPTIONS = {
    "--samples": 2,
    "--held-out": 1,
    "--held-out-samples": 1,
    "--trials": 1,
    "--population": 4,
    "--max-evaluations": 6,
    "--n-hat": "4,8",  # above 0, which engines have not: pages say what an export does then
    "--steps": 2,
    "--warmup": 1,
    "--global-batch": 1,
    "--workers": 1,
    "--device": "cpu",
    "--seed": 3,
}
"""Added to every command that has them. Of an option that is given twice, the last counts."""
OTHERS = {("finetune", "--held-out"), ("import", "--n-hat")}
"""Options that mean another thing in one of the commands."""
SETTINGS = (
    "data.documents.samples=1",
    "data.documents.held_out=1",
    "data.evaluation.samples=2",
    "execution.workers=1",
    "execution.device=cpu",
    "launch.gpus=1",
    "launch.device=cpu",
)
"""Changes of every recipe."""
_ALGORITHM = "{population: 4, max_evaluations: 6}"
STAGES: dict[str, dict[str, Any]] = {
    "search": {"algorithm": _ALGORITHM},
    "readjust": {"algorithm": _ALGORITHM},
    "finetune": {"steps": 2, "warmup": 1, "global_batch": 1, "sp": 1},
    "evaluate": {},
    "export": {},
}
"""Changes of every stage of a kind."""
SIZES = {"samples": 2, "trials": 1, "max_documents": 6}
"""Changes of what a stage says itself."""


def lay_out(folder: Path) -> None:
    """Write what commands read into the folder that they are run in."""
    for name in MODELS:
        write_model(folder / name, max_position_embeddings=WINDOW, vocab_size=2048, bos_token_id=0, eos_token_id=1)
        AutoTokenizer.from_pretrained(model_folder()).save_pretrained(folder / name)
    for number, name in enumerate(DOCUMENTS):
        (folder / name).mkdir(parents=True)
        for each in range(6):
            (folder / name / f"{each}.txt").write_text(text(10 * number + each, 1500))
    for name, content in FILES.items():
        (folder / name).write_text(content)
    for name in GGUF_FILES:
        _write_gguf(folder / name)


def _write_gguf(path: Path) -> None:
    """What llama.cpp has to know of the stand-in for LLaMA2, and one tensor."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_tensor("output_norm.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quick(words: list[str]) -> list[str]:
    """The arguments of a command of ``longrope``, to be run in seconds."""
    words = [each for word in words for each in PLACEHOLDERS.get(word, (word,))]
    if words[0] in ("extend", "plan"):
        return [*words, *changes(words[1])]
    if "demo" not in words:  # whose lengths a laptop can do
        words = [_shortened(word) for word in words]
    known = {name for option in _command(words).params for name in option.opts}
    known -= {option for command, option in OTHERS if command == words[0]}
    return [*words, *(f"{name}={value}" for name, value in OPTIONS.items() if name in known)]


def _command(words: list[str]) -> Any:
    """The command that the words run, with its options."""
    command: Any = typer.main.get_command(app)
    for word in words:
        inner = getattr(command, "commands", {}).get(word)
        if inner is None:
            break
        command = inner
    return command


def short(length: str | int) -> int:
    """What stands for a length of LLaMA2: its window for the window, twice a length for eight times that."""
    return round(WINDOW * (parse_length(length) / ORIGINAL_WINDOW) ** (1 / 3))


def _shortened(word: str) -> str:
    if re.fullmatch(r"\d+[km](,\d+[km])*", word) is None:
        return word
    return ",".join(str(short(each)) for each in word.split(","))


def changes(recipe: str) -> list[str]:
    """What makes a recipe quick, as it is said on the command line; stages keep their names."""
    content = read_yaml(ready_recipes().get(recipe, Path(recipe)))
    return [*SETTINGS, *(change for stage in content["stages"] for change in _stage_changes(stage))]


def _stage_changes(stage: Section) -> Iterator[str]:
    ((kind, given),) = stage.items()
    given = given or {}
    name = stage_name(kind, given)
    changed: dict[str, Any] = {"name": name, **STAGES[kind]}
    for key, value in given.items():
        if key.endswith("length"):
            changed[key] = short(value)
        elif key in ("lengths", "windows"):
            changed[key] = [short(each) for each in value]
        elif key in SIZES:
            changed[key] = SIZES[key]
    for key, value in changed.items():
        yield f"{name}.{key}={value}"
