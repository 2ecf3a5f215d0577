"""What counts as a right answer: SQuAD's normalisation, the first line, a part of it or all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.evaluation.answers import best_subspan_em, exact_match, first_line, has_first_line, mentions, normalise


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Beatles", "beatles"),
        ("Wilhelm Conrad Röntgen.", "wilhelm conrad röntgen"),
        ("U.S.A.", "usa"),  # punctuation is taken out, not made blank
        ("well-known", "wellknown"),
        ("a.the", "athe"),  # punctuation goes before articles
        ("a an the", ""),
        ("Theatre, an another", "theatre another"),  # articles are whole words
        (" two\n\tlines ", "two lines"),
        ("“quoted” — dash", "“quoted” — dash"),  # only ASCII's punctuation
        ("", ""),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalise(text) == normal


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == once.strip()


@given(st.lists(st.sampled_from(["river", "Sea", "1914", "Röntgen"]), min_size=1), st.sampled_from(["the", "A", "an"]))
def test_what_does_not_matter(words: list[str], article: str) -> None:
    plain, dressed = " ".join(words), f"  {article} {', '.join(words).upper()}!\t"
    assert normalise(dressed) == normalise(plain)
    assert exact_match(dressed, [plain])
    assert best_subspan_em(f"I say {dressed} it is", [plain])
    assert mentions(f"I say {dressed} it is", [plain])


def test_a_part_of_the_line_and_the_whole_line() -> None:
    answers = ["Wilhelm Röntgen", "Röntgen"]
    assert best_subspan_em("It was röntgen, in 1901.", answers)
    assert not exact_match("It was röntgen, in 1901.", answers)
    assert exact_match("The Röntgen.", answers)
    assert not best_subspan_em("Curie", answers)
    assert best_subspan_em("a party", ["art"])  # characters, as in the original
    assert not mentions("a party", ["art"])  # words


def test_the_first_line_that_is_not_blank_counts() -> None:
    assert first_line(" \n Paris \nLondon") == "Paris"
    assert first_line("Paris") == "Paris"
    assert first_line(" \n ") == ""
    assert [has_first_line(text) for text in ("", "\n", "\n Paris", "Paris\n", "\nParis\nL")] == [False] * 3 + [
        True
    ] * 2
