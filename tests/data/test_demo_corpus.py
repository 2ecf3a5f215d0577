from __future__ import annotations

import json
from pathlib import Path

from longrope.demo.corpus import write_texts

LONG = 30_000  # characters, of which a token of the embedded model has about three


def lengths(file: Path) -> dict[str, int]:
    modules = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {module["name"]: len(module["text"]) for module in modules}


def test_texts_to_judge_by_are_apart_and_searches_have_long_ones_too(tmp_path: Path) -> None:
    texts = write_texts(tmp_path)
    training, held_out, search, evaluation = map(
        lengths, (texts.training, texts.held_out, texts.search, texts.evaluation)
    )
    assert not training.keys() & held_out.keys()
    assert not search.keys() & evaluation.keys()
    assert search | evaluation == held_out
    for part in (search, evaluation):
        assert sum(length > LONG for length in part.values()) >= 5
