"""A recipe with all its work on a Ray cluster of two nodes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_recipes import Whole, carry_out

from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.run import on_cluster
from longrope.pipeline.state import DONE
from longrope.rope.policy import FactorSchedule, load_factors

ray = pytest.importorskip("ray")
pytest.importorskip("ray.train")

LEFT_OUT = ("before", "after")
"""Evaluations that decide nothing."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # of the nodes' processes
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    nodes = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=nodes)
    try:
        del nodes["include_dashboard"]
        cluster.add_node(**nodes)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_nodes_find_the_factors_of_one_machine(whole: Whole, cluster: str, tmp_path: Path) -> None:
    recipe = read_recipe(whole.recipe, ["search-128.execution.workers=2"])  # one on each node
    recipe = dataclasses.replace(recipe, stages=tuple(each for each in recipe.stages if each.name not in LEFT_OUT))
    report, seen = carry_out(on_cluster(recipe, cluster), tmp_path / "run", processes=lambda: True)
    assert seen.ran == [stage.name for stage in recipe.stages]
    assert {stage.state for stage in report.state.stages.values()} == {DONE}
    record = json.loads((tmp_path / "run" / "search-128" / "run.json").read_text())
    assert (record["executor"], record["workers"]) == ("ray", 2)
    assert list((tmp_path / "run" / "finetune-128" / "logs").glob("ray-*"))  # by Ray Train

    found, expected = (load_factors(run / "export" / "longrope.json") for run in (tmp_path / "run", whole.folder))
    assert isinstance(found, FactorSchedule)
    assert isinstance(expected, FactorSchedule)
    for window, other in zip(found.windows, expected.windows, strict=True):
        assert window.max_length == other.max_length
        assert window.factors.replace(provenance={}) == other.factors.replace(provenance={})
