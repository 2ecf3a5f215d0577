"""Which windows become the two lists of plain transformers, and what is said of the rest."""

import re

import pytest
from export_cases import factors
from hypothesis import given
from hypothesis import strategies as st

from longrope.exceptions import SettingsError
from longrope.export.two_lists import losses, two_lists
from longrope.lengths import parse_length
from longrope.model.architectures import ARCHITECTURES
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

LLAMA = ARCHITECTURES["llama"]


def schedule_of(*lengths, **changes):
    """A window of each length; longer ones stretch more."""
    return FactorSchedule(tuple(Window(each, factors(target=each, stretch=each / 256, **changes)) for each in lengths))


def lengths_said(lines, what):
    """Every length that a line says gets something else."""
    said = set()
    for line in lines:
        match = re.match(rf"sequences of (\d+) to (\w+) tokens get {what}", line)
        if match:
            said |= set(range(int(match[1]), parse_length(match[2]) + 1))
    return said


@pytest.mark.parametrize(
    ("lengths", "short"),
    [((64, 256), 64), ((32, 256), 32), ((32, 64, 256), 64), ((16, 48, 128, 256), 48), ((128, 256), 128), ((256,), 256)],
)
def test_short_list_is_the_largest_window_up_to_the_pretraining_length(lengths, short):
    lists = two_lists(schedule_of(*lengths))
    assert (lists.short.max_length, lists.long.max_length) == (short, 256)


def test_short_window_and_single_list_choose():
    schedule = schedule_of(32, 64, 128, 256)
    for window in schedule.windows:
        assert two_lists(schedule, window.max_length).short == window
    single = two_lists(schedule, single_list=True)
    assert single.short == single.long == schedule.windows[-1]
    with pytest.raises(
        SettingsError, match=r"short window 1k is not a window of the schedule; it has 32, 64, 128, 256"
    ):
        two_lists(schedule, 1024)
    with pytest.raises(SettingsError, match="attention factor 'medium' is unknown; give that of the long or short"):
        two_lists(schedule, favoured="medium")
    with pytest.raises(SettingsError, match="contradict"):
        two_lists(schedule, 64, single_list=True)


@given(
    lengths=st.sets(st.integers(1, 300), min_size=1, max_size=5),
    attention_factors=st.lists(st.sampled_from((1.0, 1.1)), min_size=5, max_size=5),
    choice=st.integers(0, 5),
    favoured=st.sampled_from(("long", "short")),
)
def test_losses_name_exactly_the_lengths_that_get_something_else(lengths, attention_factors, choice, favoured):
    schedule = FactorSchedule(
        tuple(
            Window(each, factors(target=each, stretch=each / 256, attention_factor=factor))
            for each, factor in zip(sorted(lengths), attention_factors, strict=False)
        )
    )
    single = choice == 5
    chosen = None if single or choice >= len(lengths) else sorted(lengths)[choice]
    lists = two_lists(schedule, chosen, single, favoured)
    serves_both = lists.short if favoured == "short" else lists.long
    assert lists.attention_factor == serves_both.factors.attention_factor
    lines = losses(schedule, lists, LLAMA)
    longest = max(lengths)
    expected, other_attention = set(), set()
    for length in range(1, longest + 1):
        used = (lists.short if length <= 64 else lists.long).factors
        own = schedule.factors_for(length)
        expected |= {length} if own.lambdas != used.lambdas else set()
        other_attention |= {length} if own.attention_factor != lists.attention_factor else set()
    assert lengths_said(lines, "the factors") == expected
    assert lengths_said(lines, "attention factor") == other_attention
    crossing = [line for line in lines if line.startswith("a generation that crosses 64 tokens")]
    assert len(crossing) == (lists.short.factors.lambdas != lists.long.factors.lambdas)


def test_single_list_says_why():
    schedule = schedule_of(64, 256)
    assert losses(schedule, two_lists(schedule, single_list=True), LLAMA) == (
        "sequences of 1 to 64 tokens get the factors of window 256 instead of those of 64: "
        "both lists are those of window 256",
    )


def test_phi3_recomputes_its_cache():
    schedule = schedule_of(64, 256)
    assert losses(schedule, two_lists(schedule), ARCHITECTURES["phi3"]) == ()


def test_gemma2_says_that_its_local_layers_are_rescaled():
    schedule = FactorSchedule((Window(256, factors()),))
    said = losses(schedule, two_lists(schedule), ARCHITECTURES["gemma2"])
    assert len(said) == 1
    assert said[0].startswith("the sliding-window layers are rescaled like the others")
    assert losses(schedule, two_lists(schedule), ARCHITECTURES["gemma3_text"]) == ()
    plain = FactorSchedule((Window(64, RopeFactors.identity(1e4, 16, 64)),))
    assert losses(plain, two_lists(plain), ARCHITECTURES["gemma2"]) == ()


def test_n_hat_falls_back_on_the_best_candidate_without():
    other = {"lambdas": [1.5] * 8, "n_hat": 0, "attention_factor": 1.15}
    known = factors(n_hat=8, attention_factor=1.15, provenance={"results": {"best_without_n_hat": other}})
    unknown = factors(target=64, stretch=0.5, n_hat=4, attention_factor=1.15)
    schedule = FactorSchedule((Window(64, unknown), Window(256, known)))
    lists = two_lists(schedule)
    assert (lists.short.factors.n_hat, lists.long.factors.n_hat) == (0, 0)
    assert lists.short.factors.lambdas == unknown.lambdas
    assert lists.long.factors.lambdas == (1.5,) * 8
    assert losses(schedule, lists, ARCHITECTURES["phi3"]) == (
        "sequences of 1 to 64 tokens get the same lambdas without n_hat instead of n_hat = 4",
        "sequences of 65 to 256 tokens get the best candidate with n_hat = 0 of the same search instead of n_hat = 8",
    )
