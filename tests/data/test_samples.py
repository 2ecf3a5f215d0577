from __future__ import annotations

import pickle
import random
from collections import Counter
from itertools import count as endless

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.data.documents import Document
from longrope.data.samples import Sample, draw_samples, sample_from_text
from longrope.exceptions import DataError, SettingsError

WORDS = ("the", "river", "runs", "sea", "return", "self", "café", "----", "1234", "\n    ")


def story(key, words):
    rng = random.Random(key)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def library(sizes, key=0):
    """Documents of the given numbers of words, all different."""
    return [Document(f"{i}.txt", f"{i} {story(f'{key}/{i}', size)}") for i, size in enumerate(sizes)]


def ids(tokenizer, text):
    return tokenizer(text, verbose=False)["input_ids"]


def names(samples):
    return [sample.name for sample in samples]


LIBRARIES = st.builds(library, st.lists(st.integers(0, 60), min_size=1, max_size=25), st.integers(0, 5))
DRAWS = {"length": st.integers(2, 60), "count": st.integers(1, 6), "held_out": st.integers(0, 4)}
fast = settings(max_examples=40, deadline=None)


class TestSample:
    def test_is_its_tokens(self):
        sample = Sample("a", np.arange(5))
        assert sample == Sample("b", np.arange(5, dtype=np.int64))
        assert hash(sample) == hash(Sample("b", np.arange(5)))
        assert sample != Sample("a", np.arange(6))
        assert sample != "a"
        assert sample.tokens.dtype == np.int32
        assert len(sample.digest) == 16

    def test_digest_is_the_same_on_every_machine(self):
        assert Sample("a", np.arange(5)).digest == "e528f4309e1413e6"

    def test_cannot_be_changed(self):
        given_tokens = np.arange(5, dtype=np.int32)
        sample = Sample("a", given_tokens)
        with pytest.raises(ValueError, match="read-only"):
            sample.tokens[0] = 7
        with pytest.raises(AttributeError):
            sample.name = "b"
        given_tokens[0] = 7
        assert sample.tokens[0] == 0

    def test_travels_to_workers(self):
        sample = Sample("a", np.arange(5))
        copy = pickle.loads(pickle.dumps(sample))
        assert copy == sample
        assert copy.name == "a"
        assert copy.tokens.tolist() == [0, 1, 2, 3, 4]

    def test_prefix(self):
        assert Sample("a", np.arange(5)).prefix(3) == Sample("b", np.arange(3))
        assert Sample("a", np.arange(5)).prefix(3).name == "a"


class TestDraw:
    @fast
    @given(documents=LIBRARIES, seed=st.integers(0, 3), **DRAWS)
    def test_draws_the_beginnings_of_distinct_long_documents(self, tokenizer, documents, length, count, held_out, seed):
        full = {document.name: ids(tokenizer, document.text) for document in documents}
        long_enough = {tuple(tokens[:length]) for tokens in full.values() if len(tokens) >= length}
        if len(long_enough) < count + held_out:
            with pytest.raises(DataError, match=f"only {len(long_enough)} of the {len(documents)} read"):
                draw_samples(documents, tokenizer, length, count, held_out, seed)
            return
        drawn = draw_samples(documents, tokenizer, length, count, held_out, seed)
        assert (len(drawn.search), len(drawn.held_out)) == (count, held_out)
        samples = drawn.search + drawn.held_out
        assert all(sample.tokens.tolist() == full[sample.name][:length] for sample in samples)
        assert len(set(names(samples))) == len(set(samples)) == count + held_out

    @fast
    @given(documents=LIBRARIES, seed=st.integers(0, 3), order=st.randoms(use_true_random=False), **DRAWS)
    def test_order_and_copies_of_documents_do_not_matter(
        self, tokenizer, documents, length, count, held_out, seed, order
    ):
        def drawn(documents, held_out=held_out):
            try:
                result = draw_samples(documents, tokenizer, length, count, held_out, seed)
            except DataError:
                return None
            return [[(s.name, s.digest) for s in part] for part in (result.search, result.held_out)]

        copies = [Document(f"x{document.name}", document.text) for document in documents if order.random() < 0.3]
        shuffled = documents + copies
        order.shuffle(shuffled)
        assert drawn(documents) == drawn(shuffled)
        more = drawn(shuffled, held_out + 2)
        if more is not None:
            fewer = drawn(documents)
            assert more[0] == fewer[0]
            assert more[1][:held_out] == fewer[1]

    def test_seeds_differ_and_every_long_document_is_equally_likely(self, tokenizer):
        documents = library([5, 60, 60, 3, 80, 60, 160])
        draws = Counter(draw_samples(documents, tokenizer, 50, 1, 0, seed).search[0].name for seed in range(300))
        assert set(draws) == {"1.txt", "2.txt", "4.txt", "5.txt", "6.txt"}
        assert min(draws.values()) > 32  # 60 expected of each; four standard deviations are 28

    def test_same_beginning_counts_once(self, tokenizer):
        licence = story("licence", 80)
        documents = [Document(f"{i}.txt", f"{licence}\n{story(i, 50)}") for i in range(6)] + library([90])
        for order in (documents, documents[::-1]):
            drawn = draw_samples(order, tokenizer, 40, 1, 1, 0)
            assert set(drawn.search).isdisjoint(drawn.held_out)
            with pytest.raises(DataError, match="only 2 of the 7 read"):
                draw_samples(order, tokenizer, 40, 2, 1, 0)
        results = [draw_samples(order, tokenizer, 40, 1, 1, 0) for order in (documents, documents[::-1])]
        assert names(results[0].search + results[0].held_out) == names(results[1].search + results[1].held_out)

    def test_document_of_exactly_the_length(self, fresh_tokenizer):
        text = story("exact", 30)
        tokens = ids(fresh_tokenizer, text)
        assert tokens[-1] == fresh_tokenizer.eos_token_id
        drawn = draw_samples([Document("a", text)], fresh_tokenizer, len(tokens) - 1, 1, 0, 0)
        assert drawn.search[0].tokens.tolist() == tokens[:-1]
        with pytest.raises(DataError, match=f"the longest, a, has {len(tokens) - 1} tokens"):
            draw_samples([Document("a", text)], fresh_tokenizer, len(tokens), 1, 0, 0)

    def test_works_for_every_kind_of_tokenizer(self, any_tokenizer):
        documents = library([100] * 5)
        drawn = draw_samples(documents, any_tokenizer, 30, 2, 2, 0)
        for sample in drawn.search + drawn.held_out:
            text = next(document.text for document in documents if document.name == sample.name)
            assert sample.tokens.tolist() == ids(any_tokenizer, text)[:30]

    def test_error_says_what_is_missing(self, tokenizer):
        documents = library([40, 10, 60, 20])
        longest = len(ids(tokenizer, documents[2].text))
        with pytest.raises(DataError) as caught:
            draw_samples(documents, tokenizer, longest + 1, 3, 2, 0)
        assert str(caught.value) == (
            f"5 documents of at least {longest + 1} tokens are needed (3 to search on and 2 held out), but only 0 of "
            f"the 4 read are long enough; the longest, 2.txt, has {longest} tokens; join documents with "
            "--concatenate, or choose a shorter length"
        )

    @pytest.mark.parametrize("concatenate", [False, True])
    def test_no_documents(self, tokenizer, concatenate):
        with pytest.raises(DataError, match=r"no documents|the 0 documents"):
            draw_samples([], tokenizer, 10, 1, 0, 0, concatenate)

    @pytest.mark.parametrize("concatenate", [False, True])
    def test_endless_streams_are_read_only_so_far(self, tokenizer, concatenate):
        stream = (Document(f"{i}", story(i, 60)) for i in endless())
        read = []
        drawn = draw_samples(stream, tokenizer, 30, 3, 2, 0, concatenate, max_documents=40, progress=read.append)
        assert read == list(range(1, 41))
        assert next(stream).name == "40"
        same = draw_samples([Document(f"{i}", story(i, 60)) for i in range(40)], tokenizer, 30, 3, 2, 0, concatenate)
        assert drawn == same

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"length": 1}, "length of a sample is 1"),
            ({"count": 0}, "number of samples is 0"),
            ({"held_out": -1}, "number of held-out samples is -1"),
            ({"max_documents": 0}, "most documents to read is 0"),
        ],
    )
    def test_numbers_out_of_range(self, tokenizer, changed, expected):
        options = {"length": 10, "count": 1, "held_out": 0, "seed": 0} | changed
        with pytest.raises(SettingsError, match=expected):
            draw_samples(library([50]), tokenizer, **options)


class TestConcatenation:
    @fast
    @given(documents=LIBRARIES, seed=st.integers(0, 3), order=st.randoms(use_true_random=False), **DRAWS)
    def test_each_document_is_in_one_sample_with_bos_and_eos_around_it(
        self, tokenizer, documents, length, count, held_out, seed, order
    ):
        eos, needed = tokenizer.eos_token_id, count + held_out
        pieces = {tuple([*ids(tokenizer, document.text), eos][:length]): document.name for document in documents}
        total = sum(map(len, pieces))
        shuffled = documents + documents[:3]
        order.shuffle(shuffled)
        try:
            drawn = draw_samples(shuffled, tokenizer, length, count, held_out, seed, concatenate=True)
        except DataError:
            assert total < 2 * needed * length  # twice the text always suffices
            return
        assert total >= needed * length
        assert (len(drawn.search), len(drawn.held_out)) == (count, held_out)
        used = []
        for sample in drawn.search + drawn.held_out:
            rest = sample.tokens.tolist()
            assert len(rest) == length
            parts = 0
            while rest:  # the whole pieces, then the beginning of one
                end = rest.index(eos) + 1 if eos in rest else len(rest)
                whole = [name for piece, name in pieces.items() if piece[:end] == tuple(rest[:end])]
                assert whole
                used.append(whole)
                if parts == 0:
                    assert sample.name.split(" and ")[0] in whole
                rest, parts = rest[end:], parts + 1
            assert sample.name.endswith(f" and {parts - 1} more") == (parts > 1)
        unambiguous = [found[0] for found in used if len(found) == 1]
        assert len(unambiguous) == len(set(unambiguous))
        assert drawn == draw_samples(documents, tokenizer, length, count, held_out, seed, concatenate=True)
        with_more = [*documents, *library([60] * 2 * length, key="more")]
        one_more = draw_samples(with_more, tokenizer, length, count, held_out + 1, seed, concatenate=True)
        assert one_more.search == draw_samples(with_more, tokenizer, length, count, 0, seed, concatenate=True).search

    @pytest.mark.parametrize("size", [5, 20])
    def test_a_bounded_memory_draws_the_same(self, tokenizer, size):
        """Dropping what cannot be used any more changes nothing: all the text at once gives the same."""
        documents = library([size] * 400)
        first = draw_samples(documents, tokenizer, 50, 2, 1, 0, concatenate=True)
        order = random.Random(0)
        for _ in range(3):
            order.shuffle(documents)
            again = draw_samples(documents, tokenizer, 50, 2, 1, 0, concatenate=True)
            assert names(again.search + again.held_out) == names(first.search + first.held_out)
            assert again == first
        # Asking for far more keeps everything.
        assert draw_samples(documents, tokenizer, 50, 2, 30, 0, concatenate=True).search == first.search

    def test_error_says_how_much_there_is(self, tokenizer):
        documents = library([20] * 6)
        total = sum(len(ids(tokenizer, document.text)) + 1 for document in documents)
        with pytest.raises(DataError) as caught:
            draw_samples(documents, tokenizer, 10_000, 2, 1, 0, concatenate=True)
        assert str(caught.value) == (
            f"3 samples of 10000 tokens are needed, but the 6 documents read fill only 0 ({total} tokens in all, "
            "joined); give more text, or choose a shorter length"
        )


class TestFromText:
    def test_is_the_beginning(self, tokenizer):
        text = story("demo", 100)
        sample = sample_from_text(text, tokenizer, 40, name="demo")
        assert sample.tokens.tolist() == ids(tokenizer, text)[:40]
        assert sample.name == "demo"

    def test_too_short(self, tokenizer):
        with pytest.raises(DataError, match="demo has 3 tokens, fewer than 40"):
            sample_from_text("!?", tokenizer, 40, name="demo")
