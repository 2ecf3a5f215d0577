"""What the documentation tells its readers to run works: each command of a page, in its order, in one folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quick_mode
from documented_commands import COMMAND, ROOT, Block, blocks
from tiny_search import InProcessPool
from transformers import AutoTokenizer

from longrope.evaluation import run as evaluation_run
from longrope.pipeline import probe
from longrope.search import run as search_run

if not (ROOT / "docs").is_dir():
    pytest.skip("the pages are part of a checkout only", allow_module_level=True)
for package in ("accelerate", "gguf", "jinja2", "matplotlib"):
    pytest.importorskip(package, reason=f"the README has readers install {package}")

PAGES = [
    ("README.md", ""),
    ("docs/recipes.md", ""),
    ("finetune/README.md", "To see it first"),
    ("evaluation/README.md", "To see it first"),
]


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are run in.

    Evaluators are in this process, `demo` is tiny, pictures are blank, and only `report` writes a page.
    """
    from matplotlib.figure import Figure

    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **how: savefig(Figure((1, 1)), *given, **how))
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda self: None)
    for module in (search_run, evaluation_run, probe):
        monkeypatch.setattr(module, "make_pool", lambda factory, *others: InProcessPool(factory))
    monkeypatch.setattr("longrope.pipeline.run.find_spec", lambda name: None)
    quick_mode.lay_out(tmp_path)
    monkeypatch.setattr("longrope.demo.model_folder", lambda: tmp_path / quick_mode.MODELS[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "section"), PAGES, ids=[page for page, _ in PAGES])
def test_what_a_page_tells_to_run_works(page: str, section: str, longrope: Callable[..., Any], laptop: Path) -> None:
    found = blocks(page, section)
    for block in found:
        if block.language == "yaml":
            Path(quick_mode.RECIPE).write_text(block.text)
    for block in found:
        if block.language == "python":
            run_python(block)
        elif block.language != "yaml":
            assert block.language == COMMAND, f"{block.place}: nobody knows how to run {block.language!r}"
            run_command(block, longrope)


def run_command(block: Block, longrope: Callable[..., Any]) -> None:
    program, *words = block.words
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{block.place}: {words[0]}"
        return
    if program == "pip":
        check_extras(block)
        return
    assert program == "longrope", f"{block.place}: nobody knows how to run {block.text!r}"
    if any(word in quick_mode.NOT_RUN for word in words):
        return
    words = quick_mode.quick(words)
    outcome = longrope(*words)
    told = f"{block.place}: {block.text}\nrun as: {' '.join(words)}\n{outcome.out}{outcome.err}"
    assert outcome.code in quick_mode.EXIT_CODES.get(words[0], (0,)), told
    assert "error: " not in outcome.err, told
    for option, path in itertools.pairwise(words):
        if option in ("--output", "--plot"):
            assert Path(path).exists(), told


def check_extras(block: Block) -> None:
    """What pip is told to install of a checkout is what pyproject.toml offers."""
    match = re.fullmatch(r"pip install \.\[([a-z,]+)\]", " ".join(block.words))
    assert match is not None, f"{block.place}: nobody knows how to check {block.text!r}"
    offered = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    for extra in match[1].split(","):
        assert re.search(rf"^{extra} = \[", offered.partition("\n\n")[0], re.MULTILINE), f"{block.place}: {extra}"


def run_python(block: Block) -> None:
    source = block.text
    for written, here in quick_mode.PYTHON.items():
        source = source.replace(written, here)
    tokenizer = AutoTokenizer.from_pretrained(quick_mode.MODELS[0])
    names = {
        "inputs": tokenizer("def", return_tensors="pt"),
        "quick": quick_mode.changes("llama2-7b-2048k"),
    }
    exec(compile(source, block.place, "exec"), names)


def test_the_quick_mode_knows_nothing_that_no_page_says() -> None:
    found = [block for page in PAGES for block in blocks(*page)]
    commands = [block.words for block in found if block.language == COMMAND]
    python = "".join(block.text for block in found if block.language == "python")
    words = {word for command in commands for word in command}
    assert words >= {*quick_mode.NOT_RUN, *quick_mode.PLACEHOLDERS, *quick_mode.EXIT_CODES}
    assert [written for written in quick_mode.PYTHON if written not in python] == []
    recipes = (ROOT / "configs/llama2/llama2-7b-2048k.yaml").read_text()
    read = " ".join([*words, recipes, *(block.text for block in found if block.language == "yaml")])
    laid_out = (*quick_mode.MODELS, *quick_mode.DOCUMENTS, *quick_mode.FILES, *quick_mode.GGUF_FILES)
    assert [name for name in laid_out if name not in read] == []


@pytest.mark.parametrize(("length", "stands"), [("4k", 256), ("32k", 512), ("256k", 1024), ("2m", 2048)])
def test_lengths_shrink_together(length: str, stands: int) -> None:
    assert quick_mode.short(length) == stands
