from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.data.decontamination import Decontaminator
from longrope.exceptions import DataError

WORDS = st.lists(st.sampled_from(["the", "River", "runs", "to", "a", "sea,", "été"]), max_size=40).map(" ".join)


def ngrams(text, n):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@settings(max_examples=50)
@given(evaluation=st.lists(WORDS, min_size=1, max_size=3), text=WORDS, n=st.integers(1, 6))
def test_finds_shared_ngrams_and_nothing_else(tmp_path_factory, evaluation, text, n):
    path = tmp_path_factory.mktemp("eval") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in evaluation))
    known = set().union(*(ngrams(line, n) for line in evaluation))  # never across two texts
    if not known:
        with pytest.raises(DataError, match="nothing can be compared"):
            Decontaminator([path], n)
        return
    decontaminator = Decontaminator([path], n)
    assert len(decontaminator) == len(known)
    assert decontaminator.contaminated(text) == bool(known & ngrams(text, n))


def test_every_text_of_a_record_counts(tmp_path):
    texts = [" ".join(f"{name}{index}" for index in range(13)) for name in "abc"]
    record = {"question": texts[0], "choices": [{"text": texts[1]}], "id": 5, "none": None}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (tmp_path / "b.txt").write_text(texts[2])
    decontaminator = Decontaminator([tmp_path])
    assert all(decontaminator.contaminated(f"Well: {text.upper()}; so.") for text in texts)
    assert not decontaminator.contaminated(" ".join(text[:40] for text in texts))


def test_identity_is_of_the_texts(tmp_path):
    for name, text in {"a": "one two three", "b": "one two three", "c": "one two four"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    a, b, c = (Decontaminator([tmp_path / f"{name}.txt"], 2).identity for name in "abc")
    assert a == b != c
    assert Decontaminator([tmp_path / "a.txt"], 3).identity != a


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt.*does not exist"):
        Decontaminator([tmp_path / "gone.txt"])
