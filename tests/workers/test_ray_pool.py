"""RayPool in a Ray that is already running: the same promises as LocalPool's."""

from __future__ import annotations

import re
import socket
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pool_evaluators import ScriptedFactory, Watched

from longrope.exceptions import DataError, SettingsError, WorkerError
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.workers import ray_pool
from longrope.workers.pool import Failure
from longrope.workers.ray_cluster import connect
from longrope.workers.ray_pool import RayPool
from longrope.workers.worker import Done

ray = pytest.importorskip("ray")

DIED = "the evaluator died (its worker process has died)"


def task(sample: str = "score", number: float = 1.0) -> Task:
    return Task(Candidate((1.0, number), 0, 1.0), sample)


def score(number: float = 1.0) -> BlockScore:
    return BlockScore((2.0, number * 2), 512, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Room for three evaluators; workers import what stands beside this file."""
    environment = {"env_vars": {"PYTHONPATH": ":".join(sys.path)}}
    ray.init(
        address="local",
        num_cpus=3,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env=environment,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def events() -> list[str]:
    return []


@pytest.fixture(scope="module")
def pool(cluster: None, folder: Path, events: list[str]) -> Iterator[RayPool]:
    with RayPool(ScriptedFactory(folder), 2, events=events.append) as pool:
        yield pool


def test_every_task_gets_its_own_result(pool: RayPool) -> None:
    results = list(pool.run(task(number=number) for number in range(50)))
    assert len(results) == 50
    assert dict(results) == {task(number=number): score(number) for number in range(50)}


def test_an_exception_costs_an_attempt_and_three_make_a_failure(pool: RayPool, folder: Path) -> None:
    tasks = [task("raise:always"), task("raise-once:first"), task()]
    assert dict(pool.run(tasks)) == {
        tasks[0]: Failure("MemoryError: CUDA out of memory"),
        tasks[1]: score(),
        tasks[2]: score(),
    }
    assert (folder / "always.attempts").read_text() == "xxx"
    assert (folder / "first.attempts").read_text() == "xx"


def test_a_task_that_kills_its_worker_fails_and_harms_no_other(pool: RayPool, folder: Path) -> None:
    others = [task(number=number) for number in range(10)]
    assert dict(pool.run([task("die:poison"), *others])) == {
        task("die:poison"): Failure(DIED),
        **{other: score(number) for number, other in enumerate(others)},
    }
    assert (folder / "poison.attempts").read_text() == "xxx"


def test_a_worker_killed_in_mid_evaluation_is_replaced(pool: RayPool, folder: Path, events: list[str]) -> None:
    watched = Watched(folder, "victim")

    def kill() -> None:
        first = watched.begun()
        first.kill()
        second = watched.begun()
        assert second.pid != first.pid
        watched.go_on()
        second.out.close()

    events.clear()
    with ThreadPoolExecutor(1) as helper:
        killing = helper.submit(kill)
        tasks = [task("block:victim"), *(task(number=number) for number in range(10))]
        assert dict(pool.run(tasks)) == {tasks[0]: score(), **{each: score(n) for n, each in enumerate(tasks[1:])}}
        killing.result()
    assert [event.partition(" ")[2][2:] for event in events if "replaced" in event] == [
        "died (its worker process has died), replaced"
    ]


def test_a_worker_out_of_reach_is_ended_and_replaced(
    pool: RayPool, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    get, kill, ended = ray.get, ray.kill, []

    def lose_the_first(reference: object) -> object:
        reply = get(reference)
        if isinstance(reply, Done) and not ended:
            raise ray.exceptions.ActorUnavailableError("RpcError: Socket closed", None)
        return reply

    monkeypatch.setattr(ray, "get", lose_the_first)
    monkeypatch.setattr(ray, "kill", lambda actor: (ended.append(actor), kill(actor)))
    events.clear()
    assert list(pool.run([task()])) == [(task(), score())]
    assert len(ended) == 1
    assert [event.partition(" ")[2][2:] for event in events if "replaced" in event] == [
        "died (the connection to it is lost), replaced"
    ]


def test_a_factory_that_fails_ends_the_run(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("input")
    with RayPool(ScriptedFactory(tmp_path), 1) as pool, pytest.raises(DataError) as caught:
        next(pool.run([task()]))
    assert str(caught.value) == "the data are gone; give others"
    assert ray.is_initialized()  # the pool has not started it


def test_a_factory_that_cannot_be_imported_is_said(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_in_the_driver")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("def factory(): ...", module.__dict__)
    with RayPool(module.factory, 1) as pool, pytest.raises(WorkerError, match="No module named 'only_in_") as caught:
        next(pool.run([task()]))
    assert "\n" not in str(caught.value)


def test_evaluators_without_room_are_said_and_done_without(pool: RayPool, tmp_path: Path) -> None:
    events: list[str] = []
    with RayPool(ScriptedFactory(tmp_path), 4, events=events.append) as crowded:
        tasks = [task(number=number) for number in range(5)]
        assert dict(crowded.run(tasks)) == {each: score(number) for number, each in enumerate(tasks)}
    assert events[0] == (
        "4 evaluators with 1 CPUs and 0 GPUs each asked for, but Ray has room for 3 (3 CPUs and 0 GPUs in all): "
        "working with those, until nodes join"
    )


def test_a_cluster_that_others_use_is_said_once(pool: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    list(pool.run([task()]))  # two evaluators of another pool hold their CPUs
    monkeypatch.setattr(ray_pool, "BUSY_SECONDS", 0.0)
    with RayPool(ScriptedFactory(tmp_path), 3, events=events.append) as crowded:
        tasks = [task(number=number) for number in range(5)]
        assert dict(crowded.run(tasks)) == {each: score(number) for number, each in enumerate(tasks)}
    assert [re.sub(r"\b[01] of", "few of", event) for event in events] == [
        "waiting for room on the cluster: few of 3 evaluators have started"
    ]


def test_evaluators_that_fit_on_no_node_are_refused(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"room for 0 \(3 CPUs and 0 GPUs in all\); add nodes, or ask for less"):
        RayPool(ScriptedFactory(tmp_path), 1, gpus_per_worker=0.5).start()
    with pytest.raises(WorkerError, match="room for 0"):
        RayPool(ScriptedFactory(tmp_path), 1, threads=4).start()


def test_without_a_number_evaluators_fill_the_cluster(cluster: None, tmp_path: Path) -> None:
    with RayPool(ScriptedFactory(tmp_path), None) as pool:
        assert pool.workers == 3


def test_a_cluster_that_cannot_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port on which nobody listens
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        pool = RayPool(ScriptedFactory(tmp_path), 1, address=address)
        with pytest.raises(WorkerError, match=f"^cannot reach Ray at {address}: ConnectionRefusedError: .*refused$"):
            pool.start()


def test_a_cluster_that_wants_a_token_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: object) -> None:
        assert arguments["address"] == "auto"
        try:
            raise ray.exceptions.AuthenticationError("no token")
        except ray.exceptions.AuthenticationError as error:
            raise ConnectionError("failed\nsecond line") from error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        WorkerError, match=r"^cannot reach Ray at auto: ConnectionError: failed; .*RAY_AUTH_MODE=token$"
    ):
        RayPool(ScriptedFactory(tmp_path), 1, address="auto").start()


@pytest.mark.parametrize(("failures", "starts"), [(1, True), (2, True), (3, False)])
def test_ray_that_was_too_slow_to_start_is_started_again(
    failures: int, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def init(**arguments: object) -> None:
        attempts.append(arguments)
        if len(attempts) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if starts:
        connect(None, 2)
        assert len(attempts) == failures + 1
        assert attempts[-1]["address"] == "local"
        assert attempts[-1]["num_cpus"] == 2
    else:
        with pytest.raises(WorkerError, match=r"^cannot start Ray: Exception: The current node timed out"):
            connect(None, 2)


def test_without_ray_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"pip install longrope\[search\]"):
        RayPool(ScriptedFactory(tmp_path), 1)
