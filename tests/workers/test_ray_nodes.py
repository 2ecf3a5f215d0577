"""RayPool while nodes leave the cluster and join it, in the middle of a round."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from gated_evaluators import TIMEOUT_SECONDS, Gate, GatedEvaluator, Numbered

from longrope.workers.ray_pool import RayPool

ray = pytest.importorskip("ray")

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

NODE = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 100_000_000}
Results = list[tuple[Numbered, Any]]

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # of the nodes' processes
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """One node with room for two evaluators, and whatever a test adds."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node)


@contextmanager
def round_of(pool: RayPool, tasks: list[Numbered], gate: Gate) -> Iterator[Future[Results]]:
    """A round beside the test, since Ray adds nodes in the main thread alone."""
    with ThreadPoolExecutor(1) as beside, gate:  # a test that fails opens the gate, so that the round ends
        yield beside.submit(lambda: list(pool.run(tasks)))


def test_a_node_killed_in_mid_round_loses_nothing_and_repeats_nothing_else(cluster: Cluster) -> None:
    others = [cluster.add_node(**NODE), cluster.add_node(**NODE)]
    tasks = [Numbered(number) for number in range(12)]
    gate = Gate()
    with RayPool(GatedEvaluator(gate.port), 6, address=cluster.address) as pool, round_of(pool, tasks, gate) as results:
        seen = [gate.begun() for _ in range(6)]
        assert Counter(each.node for each in seen) == dict.fromkeys(
            [cluster.head_node.node_id, *(node.node_id for node in others)], 2
        )
        for each in seen:
            each.go_on()
        under_way = [gate.begun() for _ in range(6)]  # with six results there
        lost = [each for each in under_way if each.node == others[0].node_id]
        assert len(lost) == 2
        cluster.remove_node(others[0], allow_graceful=False)
        for each in lost:
            each.wait_for_its_death()
        for each in under_way:
            if each not in lost:
                each.go_on()
        again = [gate.begun() for _ in lost]
        for each in again:
            each.go_on()
        done = results.result(TIMEOUT_SECONDS)
    begun = Counter(each.number for each in [*seen, *under_way, *again])
    assert begun == {task.number: 2 if task.number in {each.number for each in lost} else 1 for task in tasks}
    assert len(done) == len(tasks)
    finished = [*seen, *(each for each in under_way if each not in lost), *again]
    assert dict(done) == {Numbered(each.number): each.node for each in finished}


def test_a_node_added_in_mid_round_is_used(cluster: Cluster) -> None:
    head = cluster.head_node.node_id
    tasks = [Numbered(number) for number in range(5)]
    gate = Gate()
    with RayPool(GatedEvaluator(gate.port), 4, address=cluster.address) as pool, round_of(pool, tasks, gate) as results:
        first, *held = gate.begun(), gate.begun()
        first.go_on()
        held.append(gate.begun())
        assert {each.node for each in [first, *held]} == {head}
        added = cluster.add_node(**NODE)
        held += [gate.begun(), gate.begun()]
        assert {each.node for each in held[2:]} == {added.node_id}
        for each in held:
            each.go_on()
        done = results.result(TIMEOUT_SECONDS)
    assert len(done) == len(tasks)
    assert dict(done) == {Numbered(each.number): each.node for each in [first, *held]}
