"""Summaries: ROUGE by hand, prompts that fit, tables with their errors, input that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.data.records import Record
from longrope.data.templates.chapter_summary import PROMPT, ChapterSummary
from longrope.data.templates.template import Surroundings
from longrope.demo import model_folder as embedded
from longrope.evaluation.open_summarisation import open_summarisation
from longrope.evaluation.rouge import check_rouge, has_words, rouge
from longrope.evaluation.summarisation import SummarisationSuite, SummarisedDocument
from longrope.evaluation.task_settings import SummarisationSettings
from longrope.exceptions import InvalidInputError, SettingsError
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress
from longrope.workers.settings import ExecutionSettings

DOCUMENT = "The river runs to the sea. A new day begins, and the grass is green.\n" * 40


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return open_model(str(embedded()), ExecutionSettings(device="cpu"))


def suite(max_length: int, document: str = DOCUMENT, new: int = 10, **changes: Any) -> SummarisationSuite:
    given = [SummarisedDocument("file:1", document, "A river runs.")]
    return SummarisationSuite(given, max_length, **{"prompt": PROMPT, "max_new_tokens": new, **changes})


def write(folder: Path, records: list[Any]) -> str:
    path = folder / "summaries.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def test_rouge_by_hand() -> None:
    # Of 6 and 5 words, 4 are shared (the, cat, the, mat), as are 2 pairs (the cat, the mat); "the cat the mat" is the
    # longest common subsequence.
    found = rouge("The cat is on the mat.", "the cat - the big MAT!")
    assert found["rouge1"] == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5), abs=1e-6)
    assert found["rouge2"] == pytest.approx(2 * (1 / 5) * (1 / 4) / (1 / 5 + 1 / 4), abs=1e-6)
    assert found["rougeL"] == found["rouge1"]
    # The same words in another order: one in three stands in a common subsequence with none other.
    found = rouge("c b a", "a b c")
    assert (found["rouge1"], found["rouge2"]) == (1.0, 0.0)
    assert found["rougeL"] == pytest.approx(1 / 3)
    assert rouge("", "a b c") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_stems_are_compared_where_that_is_asked_for() -> None:
    assert rouge("rivers running", "river runs")["rouge1"] == 0.0
    assert rouge("rivers running", "river runs", stemmer=True)["rouge1"] == 1.0


def test_rouge_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    for missing, stemmer in (("torchmetrics", False), ("nltk", True)):
        monkeypatch.setattr(
            "longrope.evaluation.rouge.find_spec", lambda name, gone=missing: None if name == gone else find(name)
        )
        with pytest.raises(SettingsError, match=rf"needs the package {missing}: pip install longrope\[eval\]"):
            check_rouge(stemmer)
    check_rouge()


def test_what_rouge_can_compare() -> None:
    assert [has_words(text) for text in ("A b", "1", "川は海へ", "- !", "")] == [True, True, False, False, False]


@given(limit=st.integers(40, 900), new=st.integers(1, 10), text=st.text(alphabet="ab \nä東{}", max_size=300))
def test_a_document_is_cut_at_its_end(limit: int, new: int, text: str, demo: LoadedModel) -> None:
    made = suite(limit, new=new)
    for document in (text, DOCUMENT):
        tokens, kept = made.prompt(demo.tokenizer, document)
        assert len(tokens) + new <= limit
        shown = demo.tokenizer.decode(tokens, skip_special_tokens=True)
        assert shown == PROMPT.replace("{document}", document[:kept].rstrip())
        if kept < len(document):
            longer = suite(10**6, new=new).prompt(demo.tokenizer, document[: kept + 1])[0]
            assert len(longer) + new > limit


def test_training_and_evaluation_use_the_same_words(demo: LoadedModel) -> None:
    tokens, _ = suite(10_000).prompt(demo.tokenizer, "Long ago.")
    fields = {"chapter": "Long ago.", "summary": "Once."}
    asked, _ = ChapterSummary().pieces(Record("file:1", fields), Surroundings(("key",), lambda: iter(())))
    assert demo.tokenizer.decode(tokens, skip_special_tokens=True) == asked.content


def test_the_embedded_model_writes_something(demo: LoadedModel) -> None:
    found = suite(200).measure(demo.source.load_model(), demo.tokenizer, demo.rope.policy, "0")
    assert found["truncated"] == 1
    assert 0 < found["read"] < 0.5
    assert 190 <= found["length"] <= 200
    assert found["summary"]
    assert 0 <= found["rouge1"] <= 1
    json.dumps(found)


def test_the_table_has_means_and_their_errors() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 0.5, (200, 3))
    records = pd.DataFrame(scores, columns=["rouge1", "rouge2", "rougeL"]).assign(
        method="none", length=100, truncated=[1] * 30 + [0] * 170
    )
    records = pd.concat([records, records.assign(method="longrope", rouge1=0.25)])
    table = suite(200).table(records)
    assert table["method"].tolist() == ["none", "longrope"]
    row = table.iloc[0]
    for column, name in enumerate(("rouge1", "rouge2", "rougeL")):
        assert row[name] == pytest.approx(scores[:, column].mean())
        assert row[f"{name}_error"] == pytest.approx(scores[:, column].std(ddof=1) / 200**0.5, rel=0.1)
    assert (row["truncated"], row["documents"], row["tokens"]) == (30, 200, 100)
    assert table.iloc[1]["rouge1_error"] == pytest.approx(0, abs=1e-12)


RECORD = {"document": "The river runs.", "summary": "It runs."}


@pytest.mark.parametrize(
    ("records", "changes", "max_length", "message"),
    [
        ([RECORD, {"document": "x"}], {}, 900, "no field 'summary' in "),
        ([RECORD, {"text": "x", "summary": "y"}], {}, 900, "its fields are 'text', 'summary'"),
        ([{**RECORD, "document": 3}], {}, 900, "field 'document' in "),
        ([RECORD, "not an object"], {}, 900, "line 2 of "),
        ([{"document": "川", "summary": "川"}], {}, 900, "holds no document with a summary in words of a to z"),
        ([RECORD], {"chat_template": True}, 900, "no chat template; leave --chat-template away"),
        ([RECORD], {}, 512, "max-length 512 has no room for a document beside "),
    ],
)
def test_bad_input_is_refused_in_one_line(
    demo: LoadedModel, tmp_path: Path, records: Any, changes: Any, max_length: int, message: str
) -> None:
    settings = SummarisationSettings(source=write(tmp_path, records), **changes)
    with pytest.raises(InvalidInputError) as refused:
        open_summarisation(settings, max_length, 0, demo, Progress())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_fields_and_fewer_samples(demo: LoadedModel, tmp_path: Path) -> None:
    data = write(tmp_path, [{"report": f"Text {number}.", "short": "Short."} for number in range(5)])
    settings = SummarisationSettings(source=data, document="report", summary="short", samples=3, max_new_tokens=8)
    opened = [open_summarisation(settings, 100, seed, demo, Progress()) for seed in (0, 0, 1)]
    assert [len(each.items) for each in opened] == [3, 3, 3]
    assert opened[0].describe() == opened[1].describe() != opened[2].describe()


@pytest.mark.parametrize("prompt", ["Summarise.", "{document} {document}"])
def test_a_prompt_holds_the_document_once(prompt: str) -> None:
    with pytest.raises(SettingsError, match=r"the prompt has \{document\} [02] times; write it once"):
        SummarisationSettings(source="x", prompt=prompt)


def test_prompts_of_ones_own(demo: LoadedModel) -> None:
    made: Callable[[str], Any] = suite(900, prompt="{document}\nTL;DR: {x}").prompt
    text = demo.tokenizer.decode(made(demo.tokenizer, "A {document}.")[0], skip_special_tokens=True)
    assert text == "A {document}.\nTL;DR: {x}"
