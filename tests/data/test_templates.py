from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.data.encoding import PieceEncoder
from longrope.data.records import Record
from longrope.data.templates.chapter_summary import ChapterSummary
from longrope.data.templates.few_shot import FewShot
from longrope.data.templates.instruction import Instruction
from longrope.data.templates.multi_document_qa import MultiDocumentQA
from longrope.data.templates.template import Piece, Surroundings
from longrope.data.templates.text import Text
from longrope.data.templates.tokenized import Tokenized
from longrope.exceptions import DataError, SettingsError

ALONE = Surroundings(("key",), lambda: iter(()))


def pieces(template, surroundings=ALONE, **fields):
    return template.pieces(Record("file:1", fields), surroundings)


def shown(template, surroundings=ALONE, **fields):
    """The text, and the part of it where the loss counts."""
    found = pieces(template, surroundings, **fields)
    return "".join(piece.content for piece in found), "".join(piece.content for piece in found if piece.counts)


def test_text():
    assert shown(Text(field="body"), body=" as it is\n") == (" as it is\n", " as it is\n")
    assert pieces(Text(), text="  ") == ()


def test_instruction():
    assert shown(Instruction(), prompt="Why? ", answer=" So.") == ("Why?\nSo.", "So.")
    assert shown(Instruction(prompt="q", answer="a", between=" -> "), q="Why?", a="So.") == ("Why? -> So.", "So.")
    assert shown(Instruction(loss="all"), prompt="Why?", answer="So.") == ("Why?\nSo.",) * 2
    assert pieces(Instruction(), prompt="Why?", answer=None) == ()
    with pytest.raises(DataError, match="no field 'answer' in file:1"):
        pieces(Instruction(), prompt="Why?")


def test_few_shot():
    text, counted = shown(FewShot(), instruction="Translate.", input="sea", output="mer")
    assert text == "Translate.\n\nInput: sea\nOutput: mer\n\n"
    assert counted == " mer\n\n"
    assert shown(FewShot(), input="sea", output="mer")[0] == "Input: sea\nOutput: mer\n\n"
    assert shown(FewShot(), instruction="Say it.", input="", output="it")[0] == "Say it.\nOutput: it\n\n"
    assert pieces(FewShot(), output="mer") == ()


def test_chapter_summary():
    text, counted = shown(ChapterSummary(summary="short"), chapter="Long ago.", short="Once.")
    assert text == "Summarize this chapter.\n\nLong ago.\n\nSummary: Once."
    assert counted == " Once."


class TestTokenized:
    def test_ids_are_taken_as_they_are(self):
        (piece,) = pieces(Tokenized(vocab_size=10), input_ids=[1, 9, 0])
        assert piece.content.tolist() == [1, 9, 0]
        assert piece.content.dtype == np.int32
        assert pieces(Tokenized(vocab_size=10), input_ids=[]) == ()

    @pytest.mark.parametrize("value", [[10], [-1], "text", [[1]], [[1], [2, 3]], [None]])
    def test_anything_else_is_refused(self, value):
        with pytest.raises(DataError, match="'input_ids' in file:1"):
            pieces(Tokenized(vocab_size=10), input_ids=value)


class TestMultiDocumentQA:
    def ask(self, template=None, key=("key",), others=40, **fields):
        record = {"question": "Who?", "answer": "She.", "document": {"title": "Gold", "text": "It was she."}}
        around = [
            Record(f"file:{number}", {**record, "document": {"title": f"T{number}", "text": f"text {number}"}})
            for number in range(others)
        ]
        return shown(template or MultiDocumentQA(), Surroundings(key, lambda: iter(around)), **{**record, **fields})

    def listed(self, text):
        return re.findall(r"^Document \[(\d+)\] (.*)$", text, re.MULTILINE)

    def test_form(self):
        text, counted = self.ask(MultiDocumentQA(min_documents=3, max_documents=3))
        assert counted == " She."
        assert text.endswith("\n\nQuestion: Who?\nAnswer: She.")
        documents = self.listed(text)
        assert [number for number, _ in documents] == ["1", "2", "3"]
        assert "(Title: Gold) It was she." in [document for _, document in documents]

    def test_every_place_and_number_is_drawn(self):
        template = MultiDocumentQA(min_documents=3, max_documents=5)
        places = Counter()
        for seed in range(300):
            documents = [document for _, document in self.listed(self.ask(template, (seed,))[0])]
            assert documents.count("(Title: Gold) It was she.") == 1
            places[len(documents), documents.index("(Title: Gold) It was she.")] += 1
        assert len(places) == 3 + 4 + 5
        assert self.ask(template, (1,)) == self.ask(template, (1,))

    def test_own_distractors_come_first_and_are_no_gold(self):
        own = [{"title": "D", "text": "distracts"}, "plain distraction", {"title": "Gold", "text": "It was she."}, None]
        template = MultiDocumentQA(min_documents=4, max_documents=4)
        documents = [document for _, document in self.listed(self.ask(template, distractors=own)[0])]
        assert {"(Title: D) distracts", "plain distraction", "(Title: Gold) It was she."} < set(documents)
        assert len(documents) == len(set(documents)) == 4

    def test_fewer_where_there_are_no_more(self):
        assert len(self.listed(self.ask(others=3)[0])) == 4

    def test_fields_have_other_names(self):
        template = MultiDocumentQA(question="q", answer="answers", document="gold", title="head", text="body")
        text, counted = shown(template, q="Who?", answers=["She.", "Her."], gold={"head": "Gold", "body": "It was."})
        assert "Document [1] (Title: Gold) It was.\n" in text
        assert counted == " She."

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"document": 3}, "is no document"),
            ({"document": {"title": "x"}}, "no field 'text'"),
            ({"distractors": "x"}, "not a list"),
            ({"answer": 3}, "not text but int"),
        ],
    )
    def test_wrong_records_are_named(self, fields, expected):
        with pytest.raises(DataError, match=expected) as caught:
            self.ask(**fields)
        assert "file:1" in str(caught.value)

    def test_nothing_to_ask(self):
        assert self.ask(question=" ") == ("", "")
        assert self.ask(document=None) == ("", "")

    @pytest.mark.parametrize(("least", "most"), [(0, 3), (4, 3)])
    def test_numbers_must_be_in_order(self, least, most):
        with pytest.raises(SettingsError, match="at least 1 and in this order"):
            MultiDocumentQA(min_documents=least, max_documents=most)


class TestEncoding:
    @settings(max_examples=40)
    @given(prompt=st.text(max_size=20), answer=st.text(max_size=20), behind=st.text(max_size=5))
    def test_tokens_are_those_of_the_whole_text(self, any_tokenizer, prompt, answer, behind):
        parts = [Piece(prompt, False), Piece(answer), Piece(behind, False)]
        encoded = PieceEncoder(any_tokenizer).encode(parts)
        assert encoded.tokens.tolist() == any_tokenizer(prompt + answer + behind, add_special_tokens=False)["input_ids"]
        assert len(encoded.counts) == len(encoded.tokens)
        if not answer:
            assert not encoded.counts.any()

    def test_loss_counts_where_the_answer_is_written(self, any_tokenizer):
        prompt, answer = "the river runs to the ", "sea, and the sea is never full."
        encoded = PieceEncoder(any_tokenizer).encode([Piece(prompt, False), Piece(answer)])
        # Blanks are written in several ways; one token may hold the end of the prompt and the start of the answer.
        counted = re.sub(r"[\s\u2581]", "", any_tokenizer.decode(encoded.tokens[encoded.counts].tolist()))
        assert counted in (answer.replace(" ", ""), "the" + answer.replace(" ", ""))
        first = int(np.argmax(encoded.counts))
        assert encoded.counts[first:].all()

    def test_slow_tokenizers_cannot_mask(self, tokenizer):
        class Slow:
            is_fast, eos_token_id = False, None

            def __call__(self, text, **options):
                return {"input_ids": tokenizer(text)["input_ids"]}

        encoder = PieceEncoder(Slow())
        assert len(encoder.encode([Piece("the sea")]))
        with pytest.raises(SettingsError, match="use a fast tokenizer"):
            encoder.encode([Piece("the", False), Piece("sea")])
