"""How well a Ray cluster is kept busy, and what the loss and the addition of a node do: evaluators that wait.

    python benchmarks/search_cluster.py

Several nodes run on this machine, each with as many CPUs as it has workers, and an evaluation sleeps for the seconds
that its task names: evenly drawn between 1 and 3 times --base-seconds, handed out longest first. All that is
measured is what handing out, Ray and this machine's few cores add. Rounds end as a search's generations do: the next
begins when the last result is there. Workers are up before the first.

Utilisation is the ideal time of a round over the measured one, for two ideals: the bound, which no schedule can beat,
is the longest task or all tasks shared evenly; the list schedule gives the longest task left to whichever worker is
free, without any overhead. After the measured rounds, one in which a node is killed, one in which a node joins, and
one after both. What Ray itself says of the loss stands in between.
"""

from __future__ import annotations

import argparse
import heapq
import os
import platform
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import ray
from ray.cluster_utils import Cluster

from longrope.workers.pool import Failure
from longrope.workers.ray_pool import RayPool

SPREAD = 3.0
OBJECT_STORE_BYTES = 100_000_000
WARM_UP_SECONDS = 0.5


@dataclass(frozen=True)
class Wait:
    """A task that takes as long as it says."""

    number: int
    seconds: float

    @property
    def label(self) -> str:
        return f"wait {self.number}"


@dataclass(frozen=True)
class Place:
    """Where a task was done."""

    node: str
    process: int


class Waiting:
    """An evaluator, and its own factory."""

    def __call__(self) -> Waiting:
        return self

    def evaluate(self, task: Wait) -> Place:
        time.sleep(task.seconds)
        return Place(ray.get_runtime_context().get_node_id(), os.getpid())


def longest_first(count: int, base_seconds: float, generator: random.Random) -> list[Wait]:
    durations = [generator.uniform(base_seconds, SPREAD * base_seconds) for _ in range(count)]
    return [Wait(number, seconds) for number, seconds in enumerate(sorted(durations, reverse=True))]


def bound(tasks: list[Wait], workers: int) -> float:
    return max(sum(task.seconds for task in tasks) / workers, max(task.seconds for task in tasks))


def list_schedule(tasks: list[Wait], workers: int) -> float:
    """Seconds until all are done when each goes, in their order, to the worker that is free first."""
    free_at = [0.0] * workers
    for task in tasks:
        heapq.heapreplace(free_at, free_at[0] + task.seconds)
    return max(free_at)


def warm_up(pool: RayPool) -> None:
    """Wait until every worker has answered."""
    seen: set[Place | Failure] = set()

    def tasks() -> Iterator[Wait]:
        number = 0
        while len(seen) < pool.workers:
            yield Wait(number, WARM_UP_SECONDS)
            number += 1

    for _, place in pool.run(tasks()):
        seen.add(place)


def measured_round(pool: RayPool, tasks: list[Wait]) -> str:
    begin = time.perf_counter()
    done = sum(isinstance(place, Place) for _, place in pool.run(tasks))
    wall = time.perf_counter() - begin
    assert done == len(tasks)
    least, schedule = bound(tasks, pool.workers), list_schedule(tasks, pool.workers)
    return (
        f"{len(tasks):5d} tasks: {wall:6.2f} s; bound {least:6.2f} s, {least / wall:6.1%}; "
        f"list schedule {schedule:6.2f} s, {schedule / wall:6.1%}"
    )


def disturbed_round(
    pool: RayPool, tasks: list[Wait], after: int, disturb: Callable[[], object]
) -> tuple[Counter[str], str]:
    """A round in which something happens when ``after`` results are there: evaluations by node, and what came back."""
    results: list[tuple[Wait, Place | Failure]] = []
    time_has_come = Event()

    def run() -> float:
        begin = time.perf_counter()
        for result in pool.run(tasks):
            results.append(result)
            if len(results) == after:
                time_has_come.set()
        return time.perf_counter() - begin

    with ThreadPoolExecutor(1) as beside:  # not the disturbance, since Ray adds nodes in the main thread alone
        running = beside.submit(run)
        time_has_come.wait()
        disturb()
        wall = running.result()
    times = Counter(task for task, _ in results)
    once = sum(times[task] == 1 for task in tasks)
    places = [place for _, place in results if isinstance(place, Place)]
    line = f"{wall:6.2f} s; {once} came back exactly once, {len(results) - len(places)} as failures"
    return Counter(place.node for place in places), line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=4, help="of equal size, the driver's included; at least 2")
    parser.add_argument("--base-seconds", type=float, default=2.0, help="of the shortest task; the longest has 3 times")
    parser.add_argument("--rounds", type=int, nargs="+", default=[64, 160, 320], metavar="TASKS", help="of each round")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.nodes < 2 or args.workers % args.nodes:
        parser.error("give at least 2 nodes, and a multiple of them as workers")
    each = args.workers // args.nodes
    node_options = {"num_cpus": each, "object_store_memory": OBJECT_STORE_BYTES}
    generator = random.Random(args.seed)
    cluster = Cluster(initialize_head=True, head_node_args={**node_options, "include_dashboard": False})
    try:
        others = [cluster.add_node(**node_options) for _ in range(args.nodes - 1)]
        events: list[str] = []
        begin = time.perf_counter()
        with RayPool(Waiting(), args.workers, address=cluster.address, events=events.append) as pool:
            warm_up(pool)
            print(f"{pool.workers} workers on {args.nodes} nodes, up after {time.perf_counter() - begin:.0f} s")
            print(f"tasks of {args.base_seconds:g} to {SPREAD * args.base_seconds:g} s, seed {args.seed}")
            for count in args.rounds:
                print(measured_round(pool, longest_first(count, args.base_seconds, generator)), flush=True)

            tasks = longest_first(args.rounds[-1], args.base_seconds, generator)
            print(f"{len(tasks):5d} other tasks, the same in each of the rounds that follow; list schedule")
            for workers in (args.workers, args.workers - each):
                print(f"      with {workers} workers throughout: {list_schedule(tasks, workers):6.2f} s")

            events.clear()
            lost = others[0]
            _, line = disturbed_round(
                pool, tasks, len(tasks) // 2, lambda: cluster.remove_node(lost, allow_graceful=False)
            )
            replaced = sum(event.endswith("replaced") for event in events)
            print(f"a node killed after half of the results: {line}; {replaced} workers lost", flush=True)

            added: list[str] = []
            by_node, line = disturbed_round(
                pool, tasks, 1, lambda: added.append(cluster.add_node(**node_options).node_id)
            )
            print(f"a node added after the first result: {line}; {by_node[added[0]]} by the new node", flush=True)

            warm_up(pool)
            print(f"after both:\n{measured_round(pool, tasks)}")
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, ray {ray.__version__}")


if __name__ == "__main__":
    main()
