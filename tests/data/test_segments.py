from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longrope.data.mixture import Mixture, Source
from longrope.data.reader import SourceReader
from longrope.data.segments import IGNORED, SegmentStream, begun_epochs, usage
from longrope.data.templates.few_shot import FewShot
from longrope.data.templates.instruction import Instruction
from longrope.data.templates.text import Text
from longrope.exceptions import DataError, SettingsError

WORDS = ("the ", "river ", "runs ", "return ", "self.", "1234567", "é", "日本", "\n")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map("".join).filter(str.strip)


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_texts(path, texts):
    return write_lines(path, [{"text": text} for text in texts])


def of(path, **changes):
    return Mixture(sources=(Source(name="all", path=path),), **changes)


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def documents_in(stream, until):
    """The tokens of each document by source, epoch and name, joined from segments until every source is in ``until``.

    Also checks that parts follow one another.
    """
    found = defaultdict(list)
    for segment in islice(stream, 2000):
        for span in segment.spans:
            parts = found[span.source, span.epoch, span.document]
            assert len(parts) == span.offset
            parts.extend(segment.tokens[span.start : span.stop].tolist())
        if min(stream.epochs.values()) >= until:
            break
    assert min(stream.epochs.values()) >= until, "a source never has its turn"
    return {key: tokens for key, tokens in found.items() if key[1] < until}


def same(one, other):
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.labels.tolist() == other.labels.tolist()
    assert one.spans == other.spans


@settings(max_examples=12)
@given(
    lines=st.lists(TEXTS, min_size=1, max_size=12),
    texts=st.lists(TEXTS, min_size=1, max_size=3),
    rows=st.lists(TEXTS, min_size=1, max_size=8),
    pairs=st.lists(st.tuples(TEXTS, st.sampled_from(("yes", "no, the sea"))), min_size=1, max_size=8),
    length=st.integers(40, 150),
    weights=st.tuples(*[st.sampled_from((1.0, 2.0))] * 3),
    seed=st.integers(0, 3),
    cuts=st.lists(st.integers(1, 12), max_size=4),
)
def test_nothing_is_lost_or_repeated_and_every_cut_resumes(
    tokenizer, tmp_path_factory, lines, texts, rows, pairs, length, weights, seed, cuts
):
    folder = tmp_path_factory.mktemp("mixture")
    write_texts(folder / "lines.jsonl", lines)
    (folder / "mixed").mkdir()
    for index, text in enumerate(texts):
        (folder / "mixed" / f"{index}.txt").write_text(text, encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / "mixed" / "rows.parquet", row_group_size=3)
    write_lines(folder / "pairs.jsonl", [{"prompt": prompt, "answer": answer} for prompt, answer in pairs])
    mixture = Mixture(
        sources=(
            Source(name="lines", path=folder / "lines.jsonl", weight=weights[0]),
            Source(name="mixed", path=folder / "mixed", weight=weights[1]),
            Source(name="pairs", path=folder / "pairs.jsonl", weight=weights[2], template=Instruction()),
        )
    )
    examples = [plain(tokenizer, f"{prompt.strip()}\n{answer}") for prompt, answer in pairs]
    assume(min(map(len, examples)) <= length - 2)
    found = documents_in(SegmentStream(mixture, tokenizer, length, seed), 2)
    for epoch in range(2):
        of_epoch = {source: [] for source in ("lines", "mixed", "pairs")}
        for (source, number, _), tokens in found.items():
            if number == epoch:
                of_epoch[source].append(tokens)
        assert sorted(of_epoch["lines"]) == sorted(plain(tokenizer, text) for text in lines)
        assert sorted(of_epoch["mixed"]) == sorted(plain(tokenizer, text) for text in [*texts, *rows])
        assert sorted(of_epoch["pairs"]) == sorted(tokens for tokens in examples if len(tokens) <= length - 2)

    stream, states, segments = SegmentStream(mixture, tokenizer, length, seed), [], []
    for _ in range(14):
        states.append(json.dumps(stream.state_dict()))
        segments.append(next(stream))
    resumed = SegmentStream(mixture, tokenizer, length, seed)
    for cut in (*cuts, 0, 13):
        resumed.load_state_dict(json.loads(states[cut]))
        for state, segment in list(zip(states, segments, strict=True))[cut : cut + 4]:
            assert json.dumps(resumed.state_dict()) == state
            same(next(resumed), segment)


class TestSegments:
    def test_are_bookended_and_full(self, tokenizer, tmp_path):
        texts = [f"document {index} " * (1 + 7 * index) for index in range(8)]
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        for segment in islice(SegmentStream(of(write_texts(tmp_path / "a.jsonl", texts)), tokenizer, 64, 0), 30):
            tokens, labels = segment.tokens, segment.labels
            assert tokens.dtype == labels.dtype == np.int32
            assert len(tokens) == len(labels) == 64
            assert tokens[0] == bos
            assert tokens[-1] == eos
            behind = 0
            for span in segment.spans:
                assert span.start == behind + 1
                assert tokens[behind] == bos
                assert labels[behind] == IGNORED
                assert tokens[span.stop] == eos
                assert labels[span.stop] == (eos if span.ends else IGNORED)
                assert (labels[span.start : span.stop] == tokens[span.start : span.stop]).all()
                behind = span.stop + 1
            assert 64 - behind < 3  # no room for BOS, a token and EOS
            assert (tokens[behind:] == eos).all()
            assert (labels[behind:] == IGNORED).all()

    def test_one_token_for_both_ends_stands_once(self, tokenizer, tmp_path):
        path = write_texts(tmp_path / "a.jsonl", ["one two", "three four five"])
        tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="</s>")
        segment = next(SegmentStream(of(path, bos=True), tokenizer, 24, 0))
        first = segment.spans[0]
        assert first.start == 0
        assert segment.spans[1].start == first.stop + 1
        assert segment.tokens[first.stop] == tokenizer.eos_token_id

    @pytest.mark.parametrize(("bos", "eos"), [(False, True), (False, False), (True, False)])
    def test_bookends_can_be_chosen(self, tokenizer, tmp_path, bos, eos):
        path = write_texts(tmp_path / "a.jsonl", ["one two", "three four five"])
        segment = next(SegmentStream(of(path, bos=bos, eos=eos), tokenizer, 40, 0))
        assert (segment.tokens == tokenizer.bos_token_id).any() == bos
        assert (segment.tokens == tokenizer.eos_token_id).any() == eos
        assert [span.start for span in segment.spans[1:]] == [span.stop + bos + eos for span in segment.spans[:-1]]

    def test_bos_stands_where_the_tokenizer_puts_it(self, any_tokenizer, tmp_path):
        path = write_texts(tmp_path / "a.jsonl", ["there and back again"])
        segment = next(SegmentStream(of(path), any_tokenizer, 32, 0))
        adds = any_tokenizer("a")["input_ids"][0] == any_tokenizer.bos_token_id
        assert (segment.tokens[0] == any_tokenizer.bos_token_id) == adds

    def test_too_short_for_anything(self, tokenizer, tmp_path):
        with pytest.raises(SettingsError, match="2 tokens has no room"):
            SegmentStream(of(write_texts(tmp_path / "a.jsonl", ["one"])), tokenizer, 2, 0)


class TestOrder:
    def test_seed_and_epoch_decide_it(self, tokenizer, tmp_path):
        path = write_texts(tmp_path / "a.jsonl", [f"text {index}" for index in range(40)])

        def names(seed):
            found = documents_in(SegmentStream(of(path), tokenizer, 64, seed), 2)
            return [[name for _, number, name in found if number == epoch] for epoch in range(2)]

        first, second = names(0)
        assert sorted(first) == sorted(second)
        assert first != second
        assert names(0) == [first, second]
        assert names(1)[0] not in (first, second)

    def test_shares_of_tokens_follow_the_weights(self, tokenizer, tmp_path):
        paths = {
            "long": write_texts(tmp_path / "long.jsonl", ["river " * 400, "sea " * 300]),
            "short": write_texts(tmp_path / "short.jsonl", [f"a line {index}" for index in range(50)]),
            "middle": write_texts(tmp_path / "middle.jsonl", [f"{index} runs " * 20 for index in range(9)]),
        }
        weights = {"long": 1, "short": 2, "middle": 5}
        mixture = Mixture(sources=tuple(Source(name=n, path=p, weight=weights[n]) for n, p in paths.items()))
        stream = SegmentStream(mixture, tokenizer, 128, 0)
        list(islice(stream, 400))
        tokens = {name: source["tokens"] for name, source in stream.state_dict()["sources"].items()}
        for name, weight in weights.items():
            # To within a document: the longest has 400 to 800 tokens, and twice its share is drawn meanwhile.
            assert abs(tokens[name] - weight / 8 * sum(tokens.values())) < 1000

    def test_a_source_of_weight_0_is_not_read(self, tokenizer, tmp_path):
        path = write_texts(tmp_path / "a.jsonl", ["one"])
        idle = Source(name="idle", path=tmp_path / "missing", weight=0)
        stream = SegmentStream(Mixture(sources=(Source(name="a", path=path), idle)), tokenizer, 16, 0)
        assert {span.source for span in next(stream).spans} == {"a"}

    def test_epochs_are_told(self, tokenizer, tmp_path):
        stream = SegmentStream(of(write_texts(tmp_path / "a.jsonl", ["one two", "three"])), tokenizer, 64, 0)
        before = stream.state_dict()
        next(stream)
        assert stream.epochs["all"] > 0
        assert "epoch" in begun_epochs(before, stream.state_dict())[0]
        assert begun_epochs(before, before) == []
        assert usage(stream.state_dict())[0].startswith("all: 100.0% of the tokens")


class TestTemplates:
    def pairs(self, tmp_path, count=30, words=6):
        records = [{"prompt": f"{index} " + "river " * words, "answer": f"sea {index}"} for index in range(count)]
        return Source(name="pairs", path=write_lines(tmp_path / "pairs.jsonl", records), template=Instruction())

    def test_examples_are_never_split(self, tokenizer, tmp_path):
        stream = SegmentStream(Mixture(sources=(self.pairs(tmp_path),)), tokenizer, 70, 0)
        for segment in islice(stream, 20):
            assert segment.spans
            assert all(span.offset == 0 and span.ends for span in segment.spans)
            behind = segment.spans[-1].stop + 1
            assert (segment.tokens[behind:] == tokenizer.eos_token_id).all()
            assert (segment.labels[behind:] == IGNORED).all()

    def test_plain_text_fills_the_room_they_leave(self, tokenizer, tmp_path):
        text = Source(name="text", path=write_texts(tmp_path / "a.jsonl", ["the sea is never full. " * 50]))
        stream = SegmentStream(Mixture(sources=(self.pairs(tmp_path), text)), tokenizer, 70, 0)
        assert all(70 - segment.spans[-1].stop <= 3 for segment in islice(stream, 20))

    def test_loss_counts_on_answers_and_their_end(self, tokenizer, tmp_path):
        source = self.pairs(tmp_path)
        segment = next(SegmentStream(Mixture(sources=(source,)), tokenizer, 70, 0))
        span = segment.spans[0]
        counted = segment.labels[: span.stop + 1]
        number = tokenizer.decode(segment.tokens[span.start : span.stop].tolist()).split()[0]
        assert tokenizer.decode(counted[counted != IGNORED].tolist()) == f"sea {number}</s>"

    def test_longer_than_a_segment_is_left_out_and_counted(self, tokenizer, tmp_path):
        records = [{"prompt": "river " * 100, "answer": "sea"}, {"prompt": "river", "answer": "sea"}]
        source = Source(name="pairs", path=write_lines(tmp_path / "p.jsonl", records), template=Instruction())
        stream = SegmentStream(Mixture(sources=(source,)), tokenizer, 40, 0)
        next(stream)
        counts = stream.state_dict()["sources"]["pairs"]
        assert counts["too_long"] >= 1
        assert "too long" in usage(stream.state_dict())[0]

    def test_few_shot_fills_a_document(self, tokenizer, tmp_path):
        records = [{"instruction": f"Add {index}", "input": "1", "output": f"{index + 1}"} for index in range(40)]
        path = write_lines(tmp_path / "tasks.jsonl", records)
        source = Source(name="tasks", path=path, template=FewShot())
        stream = SegmentStream(Mixture(sources=(source,)), tokenizer, 200, 0)
        shown = []
        while stream.epochs["tasks"] == 0:
            segment = next(stream)
            assert len(segment.spans) == 1 or segment.spans[0].epoch != segment.spans[-1].epoch
            for span in segment.spans:
                text = tokenizer.decode(segment.tokens[span.start : span.stop].tolist())
                if span.epoch == 0:
                    shown += [part.splitlines()[0] for part in text.split("Add ")[1:]]
            counted = segment.labels[segment.labels != IGNORED].tolist()
            assert "Add" not in tokenizer.decode(counted)
        assert sorted(map(int, shown)) == list(range(40))  # every record once

    def test_few_shot_may_be_shorter_than_a_segment(self, tokenizer, tmp_path):
        records = [{"instruction": f"Add {index}", "output": f"{index + 1}"} for index in range(40)]
        source = Source(name="t", path=write_lines(tmp_path / "t.jsonl", records), template=FewShot(length=60))
        segment = next(SegmentStream(Mixture(sources=(source,)), tokenizer, 200, 0))
        assert len(segment.spans) >= 3
        assert all(span.stop - span.start <= 60 for span in segment.spans)
        assert "more" in segment.spans[0].document


class TestBounds:
    def test_leave_out_and_count(self, tokenizer, tmp_path):
        texts = ["river " * count for count in (1, 5, 20, 60)]
        sizes = [len(plain(tokenizer, text)) for text in texts]
        source = Source(
            name="a", path=write_texts(tmp_path / "a.jsonl", texts), min_length=sizes[1], max_length=sizes[2]
        )
        stream = SegmentStream(Mixture(sources=(source,)), tokenizer, 50, 0)
        found = documents_in(stream, 1)
        assert sorted(map(len, found.values())) == sizes[1:3]
        counts = stream.state_dict()["sources"]["a"]
        assert counts["too_short"] >= 1
        assert counts["too_long"] >= 1

    def test_all_outside_is_one_line(self, tokenizer, tmp_path):
        source = Source(name="books", path=write_texts(tmp_path / "a.jsonl", ["a", "b " * 50]), min_length=1000)
        with pytest.raises(
            DataError, match=r"every document of source 'books'.*2 too short.*min_length 1000"
        ) as caught:
            next(SegmentStream(Mixture(sources=(source,)), tokenizer, 50, 0))
        assert "\n" not in str(caught.value)

    def test_shows_before_the_source_has_its_turn(self, tokenizer, tmp_path):
        full = Source(name="full", path=write_texts(tmp_path / "a.jsonl", ["river " * 500]), weight=9)
        none = Source(name="none", path=write_texts(tmp_path / "b.jsonl", ["sea"]), weight=1, min_length=50)
        with pytest.raises(DataError, match="source 'none'"):
            next(SegmentStream(Mixture(sources=(full, none)), tokenizer, 50, 0))

    def test_no_text(self, tokenizer, tmp_path):
        source = Source(name="books", path=write_texts(tmp_path / "a.jsonl", ["", " \n"]))
        with pytest.raises(DataError, match=r"source 'books'.*holds no text"):
            next(SegmentStream(Mixture(sources=(source,)), tokenizer, 50, 0))


class TestDecontamination:
    TEXT = " ".join(f"word{index}" for index in range(40))

    @pytest.fixture
    def files(self, tmp_path):
        (tmp_path / "eval.txt").write_text(self.TEXT)
        texts = [f"before, {self.TEXT[60:200].upper()}! behind", *(f"clean text {index}" for index in range(3))]
        return write_texts(tmp_path / "a.jsonl", texts), tmp_path / "eval.txt"

    def test_leaves_out_and_counts(self, tokenizer, files):
        path, evaluation = files
        stream = SegmentStream(of(path, decontaminate=(evaluation,)), tokenizer, 50, 0)
        found = documents_in(stream, 1)
        assert sorted(tokenizer.decode(tokens) for tokens in found.values()) == [f"clean text {i}" for i in range(3)]
        assert stream.state_dict()["sources"]["all"]["contaminated"] >= 1
        assert len(documents_in(SegmentStream(of(path), tokenizer, 50, 0), 1)) == 4

    def test_leaves_out_single_records_of_a_packed_document(self, tokenizer, tmp_path, files):
        records = [{"instruction": f"Say {index}", "output": "yes"} for index in range(5)]
        records.append({"instruction": self.TEXT, "output": "contaminated"})
        source = Source(name="t", path=write_lines(tmp_path / "t.jsonl", records), template=FewShot())
        stream = SegmentStream(Mixture(sources=(source,), decontaminate=(files[1],)), tokenizer, 300, 0)
        found = documents_in(stream, 2)
        for epoch in range(2):
            texts = [tokenizer.decode(tokens) for (_, number, _), tokens in found.items() if number == epoch]
            assert sum(text.count("Say") for text in texts) == 5
            assert not any("word" in text for text in texts)
        state = stream.state_dict()["sources"]["t"]
        # Once an epoch, wherever the record stands: first, in the middle or last.
        assert state["contaminated"] in (state["epoch"], state["epoch"] + 1)


class TestStates:
    def make(self, tokenizer, path, *, length=50, seed=0, **changes):
        source = replace(Source(name="all", path=path), **changes)
        return SegmentStream(Mixture(sources=(source,)), tokenizer, length, seed)

    def test_of_another_run_are_refused(self, tokenizer, tmp_path):
        path = write_texts(tmp_path / "a.jsonl", ["one", "two"])
        stream = self.make(tokenizer, path)
        state = stream.state_dict()
        other = write_texts(tmp_path / "b.jsonl", ["one", "two", "three"])
        for name, another in {
            "seed (0, now 1)": self.make(tokenizer, path, seed=1),
            "length (50, now 51)": self.make(tokenizer, path, length=51),
            "tokenizer": self.make(type(tokenizer)(tokenizer_object=self.changed(tokenizer)), path),
            "mixture": self.make(tokenizer, other),
            "mixture ": self.make(tokenizer, path, min_length=2),
            "mixture  ": self.make(tokenizer, path, weight=0.5, template=Text(field="body")),
        }.items():
            with pytest.raises(SettingsError) as caught:
                another.load_state_dict(state)
            assert f"another {name.strip()}" in str(caught.value)
            assert "\n" not in str(caught.value)

    @staticmethod
    def changed(tokenizer):
        backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        backend.add_tokens(["quick"])
        return backend

    def test_survive_another_folder(self, tokenizer, tmp_path):
        texts = [f"text {index} " * 5 for index in range(30)]
        one = self.make(tokenizer, write_texts(tmp_path / "one" / "a.jsonl", texts))
        other = self.make(tokenizer, write_texts(tmp_path / "other" / "a.jsonl", texts))
        list(islice(one, 3))
        other.load_state_dict(one.state_dict())
        assert next(one).tokens.tolist() == next(other).tokens.tolist()

    @pytest.mark.parametrize("state", [{}, [], None, {"seed": 0}])
    def test_must_be_states(self, tokenizer, tmp_path, state):
        stream = self.make(tokenizer, write_texts(tmp_path / "a.jsonl", ["one"]))
        with pytest.raises(SettingsError, match="no state"):
            stream.load_state_dict(state)

    def test_must_be_whole(self, tokenizer, tmp_path):
        stream = self.make(tokenizer, write_texts(tmp_path / "a.jsonl", ["one"]))
        with pytest.raises(SettingsError, match="damaged"):
            stream.load_state_dict({**stream.state_dict(), "sources": {}})

    def test_resuming_reads_only_what_is_needed(self, tokenizer, tmp_path, monkeypatch):
        texts = [f"text {index} " * 4 for index in range(60)]
        stream = self.make(tokenizer, write_texts(tmp_path / "a.jsonl", texts), length=100)
        list(islice(stream, 10))
        resumed = self.make(tokenizer, tmp_path / "a.jsonl", length=100)
        resumed.load_state_dict(stream.state_dict())
        read = []
        encode = SourceReader._encode

        def noting(reader, record, *rest):
            read.append(record.name)
            return encode(reader, record, *rest)

        monkeypatch.setattr(SourceReader, "_encode", noting)
        segment = next(resumed)
        assert sorted(set(read)) == sorted(span.document for span in segment.spans)
