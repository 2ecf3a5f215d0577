"""Questions about many documents: the right one at its place, no other with an answer, prompts that fit, scores."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.data.records import Record
from longrope.data.templates.multi_document_qa import MultiDocumentQA
from longrope.data.templates.template import Surroundings
from longrope.demo import model_folder as embedded
from longrope.evaluation import multi_document_qa
from longrope.evaluation.answers import mentions
from longrope.evaluation.multi_document_qa import MultiDocumentQASuite
from longrope.evaluation.open_multi_document_qa import open_multi_document_qa
from longrope.evaluation.questions import Question, document_pool, gold_index, read_question
from longrope.evaluation.task_settings import MultiDocumentQASettings, parse_documents, parse_positions
from longrope.exceptions import DataError, InvalidInputError, SettingsError
from longrope.model.rope_config import read_rope
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress
from longrope.workers.settings import ExecutionSettings

SETTINGS = MultiDocumentQASettings(source="qa.jsonl")
WORDS = ["river", "stone", "cedar", "amber", "harbor", "meadow", "Paris", "1914"]

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return open_model(str(embedded()), ExecutionSettings(device="cpu"))


def record(number: int, distractors: int = 2) -> dict[str, Any]:
    """A record in the simple form, whose answer stands in its own document only."""
    return {
        "question": f"Which number has thing {number}?",
        "answers": [f"{1000 + number}"],
        "document": {"title": f"Thing {number}", "text": f"Its number is {1000 + number}."},
        "distractors": [{"title": f"Other {number}", "text": f"It is {k} tall."} for k in range(distractors)],
    }


def write(folder: Path, records: list[Any]) -> str:
    path = folder / "qa.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def listed(prompt: str) -> list[str]:
    """The documents of a prompt, which are numbered from 1."""
    found = re.findall(r"^Document \[(\d+)\] (.*)$", prompt, re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [text for _, text in found]


@given(
    gold=texts,
    own=st.lists(texts, max_size=6),
    pool=st.lists(texts, max_size=30),
    answers=st.lists(st.sampled_from(["Paris", "the 1914", "AMBER"]), min_size=1, max_size=2),
    count=st.integers(1, 8),
    position=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_documents_of_a_prompt(
    gold: str, own: list[str], pool: list[str], answers: list[str], count: int, position: float, seed: int
) -> None:
    asked = Question("file:1", "Where?", tuple(answers), gold, tuple(own))
    usable = {text for text in [*own, *pool] if text != gold and not mentions(text, answers)}
    if len(usable) < count - 1:
        with pytest.raises(DataError, match=f"^file:1 has {len(usable)} documents without an answer"):
            asked.with_distractors(pool, count - 1, seed)
        return
    asked = asked.with_distractors(pool, count - 1, seed)
    documents, index = asked.ordered(count, position)
    assert len(documents) == len(set(documents)) == count
    assert documents[index] == gold
    assert not any(mentions(text, answers) for text in documents if text != gold)
    assert index == gold_index(count, position)
    assert {0.0: 0, 1.0: count - 1}.get(position, index) == index
    rest = [text for text in documents if text != gold]
    first = [text for text in dict.fromkeys(own) if text in usable][: count - 1]
    assert rest[: len(first)] == first  # its own come first, in their order
    if count > 1:
        fewer, _ = asked.ordered(count - 1, position)
        assert set(fewer) < set(documents)


def test_places_are_those_of_lost_in_the_middle() -> None:
    places = {count: [gold_index(count, k / 4) for k in range(5)] for count in (10, 20)}
    assert places[20] == [0, 4, 9, 14, 19]
    assert [places[10][k] for k in (0, 2, 4)] == [0, 4, 9]


def test_the_seed_decides_what_is_drawn() -> None:
    asked = Question("file:1", "Where?", ("Paris",), "gold", ())
    pool = [f"text {number}" for number in range(50)]
    drawn = [asked.with_distractors(pool, 5, seed).distractors for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_both_forms_of_records_ask_the_same() -> None:
    simple = record(7)
    marked = {
        "question": simple["question"],
        "answers": simple["answers"],
        "ctxs": [
            {**simple["distractors"][0], "hasanswer": False, "isgold": False},
            {"title": "x", "text": "also 1007", "hasanswer": True, "isgold": False},
            {**simple["document"], "hasanswer": True, "isgold": True},
            {**simple["distractors"][1], "hasanswer": False, "isgold": False},
        ],
    }
    asked = read_question(Record("file:7", simple), SETTINGS)
    assert asked == read_question(Record("file:7", marked), SETTINGS)
    assert asked is not None
    assert asked.gold == "(Title: Thing 7) Its number is 1007."
    for each in marked["ctxs"]:
        del each["isgold"]
    second = read_question(Record("file:7", marked), SETTINGS)
    assert second is not None
    assert second.gold == "(Title: x) also 1007"  # the first that has an answer, where none is said to be gold
    assert len(second.distractors) == 2
    renamed = MultiDocumentQASettings(source="qa.jsonl", question="q", answers="a", document="d", distractors="o")
    fields = {"q": simple["question"], "a": simple["answers"][0], "d": simple["document"], "o": simple["distractors"]}
    assert read_question(Record("file:7", fields), renamed) == asked


def test_a_record_that_asks_nothing() -> None:
    for change in ({"question": " "}, {"answers": []}, {"answers": None}, {"answers": ["The", "?"]}):
        assert read_question(Record("file:1", {**record(1), **change}), SETTINGS) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": ...}, "no field 'question' in file:1; its fields are 'answers', 'document', 'distractors'"),
        ({"document": ...}, "neither a field 'ctxs' nor 'document' in file:1; its fields are 'question', 'answers', "),
        ({"answers": 7}, "field 'answers' in file:1 is not text but int"),
        ({"ctxs": [{"title": "x", "text": "y", "isgold": False}]}, "none of the 1 documents in 'ctxs' of file:1 is "),
        ({"ctxs": ["a text"]}, "'ctxs' in file:1 holds \"a text\"; give objects"),
        ({"ctxs": "a text"}, "'ctxs' in file:1 is not a list of documents but str"),
        ({"document": {"title": "x", "text": " "}}, "holds the answer is empty in file:1"),
        ({"document": {"title": "x"}}, "no field 'text' in 'document' in file:1"),
        ({"distractors": [7]}, "a distractor in file:1 is no document"),
    ],
)
def test_records_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    fields = {name: value for name, value in {**record(1), **changes}.items() if value is not ...}
    with pytest.raises(DataError) as refused:
        read_question(Record("file:1", fields), SETTINGS)
    assert message in str(refused.value)


def test_training_and_evaluation_ask_in_the_same_words(demo: LoadedModel) -> None:
    asked = read_question(Record("file:1", record(1)), SETTINGS)
    assert asked is not None
    suite = MultiDocumentQASuite([asked.with_distractors([], 2, 0)], 512, [3], [0.0, 0.5, 1.0], 8)
    mine = {demo.tokenizer.decode(suite.prompt(demo.tokenizer, item.key)[0][1:]) for item in suite.items}
    template = MultiDocumentQA(answer="answers", min_documents=3, max_documents=3)
    theirs = {
        template.pieces(Record("file:1", record(1)), Surroundings((seed,), lambda: iter(())))[0].content
        for seed in range(40)
    }
    assert mine < theirs  # which have the distractors in either order
    assert len(mine) == 3


def opened(settings: MultiDocumentQASettings, demo: LoadedModel, max_length: int = 600) -> MultiDocumentQASuite:
    return open_multi_document_qa(settings, max_length, 0, demo, Progress())


def test_prompts_that_are_too_long_have_fewer_documents(demo: LoadedModel, tmp_path: Path) -> None:
    data = write(tmp_path, [record(number) for number in range(6)])
    settings = MultiDocumentQASettings(source=data, samples=3, documents=(2, 8), max_new_tokens=8)
    whole = opened(settings, demo)
    assert len(whole.items) == 3 * (2 + 3)  # of 2 documents, the middle is the start
    longest = max(len(whole.prompt(demo.tokenizer, item.key)[0]) for item in whole.items)
    limit = longest - 20 + 8
    suite = opened(settings, demo, limit)
    for item in suite.items:
        count, position, _ = item.key.split("/")
        tokens, documents, gold = suite.prompt(demo.tokenizer, item.key)
        question = suite._asked[item.key][0]
        assert len(tokens) + 8 <= limit
        assert listed(demo.tokenizer.decode(tokens)) == documents
        assert documents[gold] == question.gold
        assert gold == gold_index(len(documents), float(position))
        if len(documents) < int(count):
            more = MultiDocumentQASuite([question], 10_000, [len(documents) + 1], [float(position)], 8)
            assert len(more.prompt(demo.tokenizer, more.items[0].key)[0]) + 8 > limit
        else:
            assert tokens == whole.prompt(demo.tokenizer, item.key)[0]
    shown = {item.key.split("/")[0]: len(suite.prompt(demo.tokenizer, item.key)[1]) for item in suite.items}
    assert shown["2"] == 2
    assert shown["8"] < 8


def test_scores_and_table(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [read_question(Record(f"file:{n}", record(n)), SETTINGS) for n in range(4)]
    pool = document_pool(each for each in questions if each is not None)
    suite = MultiDocumentQASuite(
        [each.with_distractors(pool, 5, 0) for each in questions if each is not None], 150, [2, 6], [0.0, 1.0], 10
    )
    answers = {  # by the place of the right document, of two and of more
        "2/0.0": ["1000", " It is 1001.\n1003", "\n\n1002\n", "1003"],
        "2/1.0": ["no", "no\n1001", "", "1003"],
        "6/0.0": ["no"] * 4,
        "6/1.0": ["no"] * 4,
    }
    measured = []
    for item in suite.items:
        place, _, number = item.key.rpartition("/")
        lengths: list[int] = []

        def answer(*given: Any, stop: Any, text: str = answers[place][int(number)], seen: Any = lengths) -> str:
            assert stop("x\n")
            assert not stop("x")
            seen.append(len(given[3]) + given[4])
            return text

        monkeypatch.setattr(multi_document_qa, "generate", answer)
        found = suite.measure(None, demo.tokenizer, read_rope(demo.config).policy, item.key)
        assert found["length"] == lengths[0] <= 150
        json.dumps(found)
        measured.append({"method": "none", "item": item.key, **found})
    records = pd.DataFrame(measured)
    assert set(records[records["documents"] == 2]["truncated"]) == {0}
    table = suite.table(records).set_index(["documents", "position"])
    assert table.index.tolist() == [(2, 0.0), (2, 1.0), (6, 0.0), (6, 1.0)]
    assert table["best_subspan_em"].tolist() == [1.0, 0.25, 0.0, 0.0]
    assert table["exact_match"].tolist() == [0.75, 0.25, 0.0, 0.0]
    assert set(table["trials"]) == {4}
    assert table["truncated"].tolist() == [0, 0, 4, 4]
    assert ((table["low"] <= table["best_subspan_em"]) & (table["best_subspan_em"] <= table["high"])).all()


def test_the_embedded_model_answers_something(demo: LoadedModel) -> None:
    asked = read_question(Record("file:1", record(1)), SETTINGS)
    assert asked is not None
    suite = MultiDocumentQASuite([asked.with_distractors([], 2, 0)], 256, [3], [0.5], 6)
    found = suite.measure(demo.source.load_model(), demo.tokenizer, demo.rope.policy, suite.items[0].key)
    assert (found["gold"], found["shown"], found["truncated"]) == (2, 3, 0)
    assert found["answer"]


@pytest.mark.parametrize(
    ("changes", "max_length", "message"),
    [
        ({"documents": (40,)}, 600, "40 documents need 39; give more records, or fewer documents"),
        ({"chat_template": True}, 600, "no chat template; leave --chat-template away"),
        ({}, 40, "max-length 40 has no room for "),
        ({"question": "q"}, 600, "there is no field 'q' in "),
        ({"source": "nothing.jsonl"}, 600, "data 'nothing.jsonl' does not exist"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    demo: LoadedModel, tmp_path: Path, changes: dict[str, Any], max_length: int, message: str
) -> None:
    data = write(tmp_path, [record(number) for number in range(3)])
    with pytest.raises(InvalidInputError) as refused:
        opened(MultiDocumentQASettings(**{"source": data, "documents": (2,), **changes}), demo, max_length)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_records_without_questions_are_counted(demo: LoadedModel, tmp_path: Path) -> None:
    said: list[str] = []

    class Listening(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    blank = {**record(9), "answers": ["the"]}
    settings = MultiDocumentQASettings(source=write(tmp_path, [record(1), blank]), documents=(2,))
    suite = open_multi_document_qa(settings, 600, 0, demo, Listening())
    assert len(suite.items) == 2
    assert any("left out 1 records" in text for text in said)
    empty = MultiDocumentQASettings(source=write(tmp_path, [blank]), documents=(2,))
    with pytest.raises(DataError, match="holds no question with an answer"):
        opened(empty, demo)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_documents("20,many"), "documents '20,many' are not whole numbers"),
        (lambda: parse_positions("0,2"), "positions '0,2' are not places"),
        (lambda: parse_positions("top"), "positions 'top' are not places"),
        (lambda: parse_positions("nan"), "positions 'nan' are not places"),
        (lambda: MultiDocumentQASettings(source="x", documents=(0,)), "numbers of at least 1"),
        (lambda: MultiDocumentQASettings(source="x", positions=(1.5,)), "numbers from 0"),
        (lambda: MultiDocumentQASettings(source="x", samples=0), "samples is 0; give at least 1"),
        (lambda: MultiDocumentQASettings(source="x", max_new_tokens=0), "max_new_tokens is 0; give at least 1"),
    ],
)
def test_settings_say_what_is_wrong(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


def test_lists_as_people_write_them() -> None:
    assert parse_positions("start, middle,end,0.25") == (0.0, 0.5, 1.0, 0.25)
    assert parse_documents("20, 5,") == (20, 5)
