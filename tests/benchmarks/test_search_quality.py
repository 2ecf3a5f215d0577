"""benchmarks/search_quality.py tells two searches apart by held-out documents and seeds."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scripts_by_path import checkout_script, load_script

from longrope.search.levels import FIRST_RAMPS
from longrope.search.racing import RULE

SCRIPT = checkout_script("benchmarks/search_quality.py")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


def result(name: str, seed: int, documents: list[float]) -> dict[str, Any]:
    """Of a search at 8x, with losses of held-out documents of equal length after 400 candidates."""
    held_out = math.exp(sum(documents) / len(documents))
    return {
        "ratio": 8,
        "seed": seed,
        "search": name,
        "marks": {"400": {"held_out": held_out, "documents": documents}},
    }


def compared(script: ModuleType, differences: Any, others: list[dict[str, Any]] | None = None) -> list[float]:
    """Mean, standard error and figures by seed, of searches whose documents differ by so much (seeds, documents)."""
    results = [result("paper", seed, [2.0] * len(each)) for seed, each in enumerate(differences)]
    results += [result("genetic", seed, [2.0 + by for by in each]) for seed, each in enumerate(differences)]
    told = script.paired(results + (others or []), 8, ("genetic", 400), ("paper", 400))
    return [float(number) for number in re.findall(r"-?\d+\.\d+", told)]


def test_one_seed_is_told_by_its_documents(script: ModuleType) -> None:
    # A standard deviation of 2%, of four documents.
    step = 0.02 * math.sqrt(3) / 2
    mean, error, seed = compared(script, [[-0.01 + step, -0.01 - step, -0.01 + step, -0.01 - step]])
    assert (mean, error, seed) == (-1.0, 1.0, -1.0)


def test_seeds_that_agree_add_nothing_and_those_that_do_not_do(script: ModuleType) -> None:
    documents = np.array([0.01, -0.03, 0.02, -0.04])
    alone = compared(script, [documents])
    assert compared(script, [documents, documents, documents])[:2] == alone[:2]
    apart = compared(script, [documents + 0.04, documents, documents - 0.04])
    assert apart[0] == alone[0]
    # 4% between seeds, of which there are three.
    assert apart[1] == pytest.approx(math.sqrt(alone[1] ** 2 + 16 / 3), abs=0.01)
    assert apart[2:] == [3.0, -1.0, -5.0]


def test_what_documents_say_by_chance_is_no_difference_of_seeds(script: ModuleType) -> None:
    # Neither the documents nor the seeds differ in their means; 2% between documents within a seed is the rest, of
    # which a mean of four has 1%.
    assert compared(script, [[0.0, 0.02], [0.02, 0.0]]) == [1.0, 1.0, 1.0, 1.0]


def test_only_seeds_of_both_searches_are_compared(script: ModuleType) -> None:
    both = compared(script, [[0.01, 0.03], [0.02, 0.05]])
    more = [result("genetic", 2, [9.0, 9.0]), {**result("paper", 2, [1.0, 1.0]), "ratio": 4}]
    assert compared(script, [[0.01, 0.03], [0.02, 0.05]], more) == both
    assert script.paired(more, 8, ("genetic", 400), ("paper", 400)) is None


@pytest.mark.parametrize(
    ("seeds", "documents", "rest"), [(0.3, 0.5, 0.4), (0.0, 0.5, 0.4), (0.3, 0.0, 0.4), (0.3, 0.5, 0)]
)
def test_the_standard_error_is_what_other_seeds_and_documents_would_differ_by(
    script: ModuleType, seeds: float, documents: float, rest: float
) -> None:
    drawn = np.random.default_rng(0)
    found = [
        compared(
            script,
            drawn.normal(0, 1, (4, 1)) * seeds
            + drawn.normal(0, 1, 20) * documents
            + drawn.normal(0, 1, (4, 20)) * rest,
        )
        for _ in range(400)
    ]
    means, errors = (np.array([each[place] for each in found]) for place in (0, 1))
    # Neither effect is taken to be less than none, so that where one is none the error is a little larger.
    assert 0.95 < np.sqrt((errors**2).mean()) / means.std() < 1.15


def test_the_table_has_the_mean_and_the_spread_of_the_seeds(script: ModuleType) -> None:
    found = script.table(
        [result("genetic", 0, [2.0, 2.0]), result("genetic", 1, [2.1, 2.1]), result("paper", 0, [3.0])]
    )
    low, high = math.exp(2.0), math.exp(2.1)
    spread = (high - low) / math.sqrt(2)
    assert found.loc[(8, "genetic"), 400] == f"{(low + high) / 2:.3f} ± {spread:.3f}"
    assert found.loc[(8, "paper"), 400] == f"{math.exp(3.0):.3f}"


def test_results_by_other_rules_are_left_out_by_name(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    present = {"first_ramps": FIRST_RAMPS, "racing": RULE}
    records = {
        "8x-seed-0-paper": {"search": "paper", "racing": 0},
        "8x-seed-0-cma": {"search": "cma", "racing": RULE},
        "8x-seed-0-genetic-no-racing": {"search": "genetic, no racing", **present, "racing": 0},
        "8x-seed-0-genetic": {"search": "genetic", **present},
        "8x-seed-1-cma": {"search": "cma", "racing": RULE - 1},
        "8x-seed-1-genetic": {"search": "genetic", **present, "racing": RULE - 1},
        "8x-seed-2-genetic": {"search": "genetic", **present, "first_ramps": FIRST_RAMPS - 1},
        "8x-seed-3-genetic": {"search": "genetic", "racing": RULE},
    }
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    found = script.read_results(str(tmp_path))
    assert sorted(each["search"] for each in found) == ["cma", "genetic", "genetic, no racing", "paper"]
    assert capsys.readouterr().out == (
        "left out, made by other rules: 8x-seed-1-cma, 8x-seed-1-genetic, 8x-seed-2-genetic, 8x-seed-3-genetic\n"
    )


def test_a_search_is_run_again_only_if_rules_have_changed_since(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "SAMPLES", 1)
    monkeypatch.setattr(script, "HELD_OUT", 1)
    monkeypatch.setattr(script, "MARKS", (3,))
    words = "run --searches genetic --ratios 4 --seeds 0 --evaluations 3"
    folders = ["--output", str(tmp_path), "--work", str(tmp_path / "work")]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *words.split(), *folders])
    script.main()
    [found] = script.read_results(str(tmp_path))
    assert (found["first_ramps"], found["racing"], list(found["marks"])) == (FIRST_RAMPS, RULE, ["3"])
    script.main()
    assert capsys.readouterr().out.count("4x-seed-0-genetic:") == 1
    [path] = tmp_path.glob("*.json")
    path.write_text(json.dumps({**found, "first_ramps": FIRST_RAMPS - 1}))
    script.main()
    assert capsys.readouterr().out.count("4x-seed-0-genetic:") == 1
    assert script.read_results(str(tmp_path)) == [found]
