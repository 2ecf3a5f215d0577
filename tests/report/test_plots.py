import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from matplotlib.text import Text

from longrope.exceptions import SettingsError
from longrope.report.plots import (
    convergence_figure,
    factors_figure,
    perplexity_range,
    plot_convergence,
    plot_factors,
    save_figure,
    spread,
)
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear, ntk, yarn

PLAIN = RopeFactors.identity(10000.0, 64, 256)
SEARCHED = ntk(PLAIN, 2048).replace(n_hat=28, attention_factor=1.1726)
CURVES = {"pi": linear(PLAIN, 2048), "longrope": SEARCHED, "ntk": ntk(PLAIN, 2048), "yarn": yarn(PLAIN, 2048)}

EVALUATIONS = [11.0, 12.3, 24.0, math.inf, 10.5, 5000.0, math.nan, 10.1]
BEST = [(4, 11.0), (8, 10.1)]
BASELINES = {"none": 812.4, "pi": 24.0, "ntk": 12.3, "dynamic-ntk": 12.25, "yarn": 11.0}


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def side_labels(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def note(figure):
    return figure.axes[0].get_title(loc="left").replace("\n", " ")


def test_candidates_are_dots_in_the_order_evaluated():
    drawn = lines(convergence_figure(EVALUATIONS, BEST, BASELINES))
    assert list(drawn["candidates"].get_xdata()) == [1, 2, 5, 8]
    assert list(drawn["candidates"].get_ydata()) == [11.0, 12.3, 10.5, 10.1]


def test_terrible_candidates_and_baselines_do_not_squash_the_plot():
    figure = convergence_figure(EVALUATIONS, BEST, BASELINES)
    bottom, top = figure.axes[0].get_ylim()
    assert 9 < bottom < 10.1
    assert 12.3 < top < 15
    assert list(lines(figure)["above"].get_xdata()) == [3, 6]
    assert "above the axis: none 812.4, pi 24, 2 candidates" in note(figure)
    assert "none" not in lines(figure)


def test_what_is_not_finite_is_counted_and_left_out():
    figure = convergence_figure(EVALUATIONS, BEST, {**BASELINES, "abf": math.nan, "llama3": 12000.0})
    assert "llama3 12000" in note(figure)
    assert "failed: abf, 2 candidates" in note(figure)
    assert "abf" not in lines(figure)


def test_baselines_are_labelled_lines_at_their_perplexity():
    figure = convergence_figure(EVALUATIONS, BEST, BASELINES)
    for name in ("yarn", "ntk", "dynamic-ntk"):
        assert set(lines(figure)[name].get_ydata()) == {BASELINES[name]}
    assert side_labels(figure) == ["best 10.1", "yarn 11", "dynamic-ntk 12.25", "ntk 12.3"]


def test_labels_do_not_overlap():
    figure = convergence_figure(EVALUATIONS, BEST, {f"m{index}": 11 + index / 1000 for index in range(9)})
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) == 10
    for below, above in pairwise(boxes):
        assert below.y1 <= above.y0 + 1


def test_best_so_far_is_a_step_line_to_the_end():
    drawn = lines(convergence_figure([*EVALUATIONS, 13.0], BEST, BASELINES))["best so far"]
    assert drawn.get_drawstyle() == "steps-post"
    assert list(zip(drawn.get_xdata(), drawn.get_ydata(), strict=True)) == [(4, 11.0), (8, 10.1), (9, 10.1)]


@pytest.mark.parametrize(("values", "scale"), [([10, 11, 12], "linear"), ([10, 40, 90], "log")])
def test_the_axis_is_logarithmic_where_the_range_is_large(values, scale):
    figure = convergence_figure(values, [(3, 10.0)], {"yarn": max(values)})
    assert figure.axes[0].get_yscale() == scale
    figure.draw_without_rendering()
    shown = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert len(shown) >= 3
    assert not any("10^" in text for text in shown)


PERPLEXITIES = st.lists(st.floats(1, 1e12), max_size=20)


@settings(max_examples=40, deadline=None)
@given(PERPLEXITIES, PERPLEXITIES)
def test_the_best_of_all_is_inside_the_axis(candidates, baselines):
    bottom, top = perplexity_range(candidates, baselines)
    assert 0 < bottom < top < math.inf
    if candidates or baselines:
        assert bottom < min([*candidates, *baselines]) < top
    if baselines:
        assert min(baselines) < top


def test_nothing_to_plot_is_an_empty_plot():
    figure = convergence_figure([math.nan], [], {"pi": math.inf})
    assert "failed: pi, 1 candidate" in note(figure)
    assert side_labels(figure) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=15).map(sorted))
def test_spread_labels_are_apart_and_in_order(positions):
    places = spread(positions, 0.05)
    assert all(place <= 1 for place in places)
    assert all(after - before >= 0.05 - 1e-9 for before, after in pairwise(places))
    if all(after - before >= 0.05 for before, after in pairwise(positions)):
        assert places == positions


def test_factors_are_drawn_against_the_pair_with_the_searched_ones_emphasised():
    figure = factors_figure(CURVES)
    drawn = lines(figure)
    searched = drawn["longrope (n_hat 28, attention 1.173)"]
    assert tuple(searched.get_ydata()) == SEARCHED.lambdas
    assert list(searched.get_xdata()) == list(range(32))
    others = [drawn["pi (attention 1)"], drawn["ntk (attention 1)"], drawn["yarn (attention 1.208)"]]
    assert all(line.get_linewidth() < searched.get_linewidth() for line in others)
    assert len({line.get_color() for line in [searched, *others]}) == 4
    assert set(drawn["s = 8"].get_ydata()) == {8.0}
    assert figure.axes[0].get_yscale() == "log"
    assert figure.legends[0].texts[0].get_text().startswith("longrope")


def test_a_method_has_one_colour_in_every_plot():
    in_factors = lines(factors_figure({"longrope": SEARCHED, "YaRN": CURVES["yarn"]}))["YaRN (attention 1.208)"]
    in_convergence = lines(convergence_figure(EVALUATIONS, BEST, {"yarn (1.208)": 11.0}))["yarn (1.208)"]
    assert in_factors.get_color() == in_convergence.get_color()


def test_the_first_factors_are_emphasised_without_a_searched_one():
    drawn = lines(factors_figure({"second": CURVES["ntk"], "pi": CURVES["pi"]}))
    assert drawn["second (attention 1)"].get_linewidth() > drawn["pi (attention 1)"].get_linewidth()


def test_the_theoretical_critical_pair_is_marked_unless_another_is_given():
    assert set(lines(factors_figure(CURVES))["critical pair 13"].get_xdata()) == {13}
    assert set(lines(factors_figure(CURVES, critical=9))["critical pair 9"].get_xdata()) == {9}
    every_pair_trained = RopeFactors.identity(10000.0, 64, 1 << 20)
    assert not any(name.startswith("critical") for name in lines(factors_figure({"none": every_pair_trained})))


def test_a_small_range_of_lambdas_is_linear():
    assert factors_figure({"none": PLAIN, "pi": linear(PLAIN, 512)}).axes[0].get_yscale() == "linear"


def test_factors_need_a_curve(tmp_path):
    with pytest.raises(SettingsError, match="no factors"):
        plot_factors({}, tmp_path / "factors.png")


def test_a_png_is_the_same_every_time(tmp_path):
    for name in ("first", "second"):
        plot_convergence(EVALUATIONS, BEST, BASELINES, tmp_path / f"{name}.png")
    data = (tmp_path / "first.png").read_bytes()
    assert data == (tmp_path / "second.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == 1050  # pixels across
    assert len(data) > 10_000
    assert len(list(tmp_path.iterdir())) == 2


def test_an_svg_is_the_same_every_time(tmp_path):
    for name in ("first", "second"):
        plot_factors(CURVES, tmp_path / f"{name}.svg")
    data = (tmp_path / "first.svg").read_bytes()
    assert data == (tmp_path / "second.svg").read_bytes()
    assert ElementTree.fromstring(data).tag.endswith("svg")
    assert len(data) > 10_000


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"use \.png or \.svg"):
        plot_factors(CURVES, tmp_path / "factors.jpg")
    assert not list(tmp_path.iterdir())


def test_a_failed_plot_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "factors.png"
    path.write_text("old")
    figure = factors_figure(CURVES)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingsError, match=r"pip install longrope\[report\]"):
        plot_factors(CURVES, tmp_path / "factors.png")


def test_matplotlib_is_loaded_late_and_pyplot_never():
    code = (
        "import sys, longrope.report.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.convergence_figure([3.0, 2.0], [(2, 2.0)], {'yarn': 3.0})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
