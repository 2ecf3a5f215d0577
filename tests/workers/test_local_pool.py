"""LocalPool: every task gets a result, whatever happens to the processes that compute it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from pool_evaluators import ScriptedFactory, Watched

import longrope
from longrope.exceptions import DataError, FactorsError, InvalidInputError, SettingsError, WorkerError
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.workers.local_pool import LocalPool, device_share
from longrope.workers.pool import Failure

KILLED = "the evaluator died (signal 9)"


def task(sample: str = "score", number: float = 1.0) -> Task:
    return Task(Candidate((1.0, number), 0, 1.0), sample)


def score(number: float = 1.0) -> BlockScore:
    return BlockScore((2.0, number * 2), 512, 0.5)


@pytest.fixture(autouse=True)
def _never_hang() -> Iterator[None]:
    def fail(*_: object) -> NoReturn:
        raise TimeoutError("the pool hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def events() -> list[str]:
    return []


@pytest.fixture(scope="module")
def pool(folder: Path, events: list[str]) -> Iterator[LocalPool]:
    with LocalPool(ScriptedFactory(folder), 2, events=events.append) as pool:
        yield pool


@pytest.fixture
def helper() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as helper:
        yield helper


def test_every_task_gets_its_own_result(pool: LocalPool) -> None:
    results = list(pool.run(task(number=number) for number in range(50)))
    assert len(results) == 50
    assert dict(results) == {task(number=number): score(number) for number in range(50)}
    assert list(pool.run([])) == []


def test_an_exception_costs_an_attempt_and_three_make_a_failure(
    pool: LocalPool, folder: Path, events: list[str]
) -> None:
    tasks = [task("raise:always"), task("raise-once:first"), task()]
    assert dict(pool.run(tasks)) == {
        tasks[0]: Failure("MemoryError: CUDA out of memory"),
        tasks[1]: score(),
        tasks[2]: score(),
    }
    assert (folder / "always.attempts").read_text() == "xxx"
    assert (folder / "first.attempts").read_text() == "xx"
    assert f"attempt 3 of 3 at candidate {tasks[0].candidate.key}, sample raise:al failed: " in "\n".join(events)


def test_a_task_that_kills_its_worker_fails_and_harms_no_other(pool: LocalPool, folder: Path) -> None:
    others = [task(number=number) for number in range(20)]
    results = dict(pool.run([task("die:poison"), *others, task("die-once:accident")]))
    assert results == {
        task("die:poison"): Failure(KILLED),
        task("die-once:accident"): score(),
        **{other: score(number) for number, other in enumerate(others)},
    }
    assert (folder / "poison.attempts").read_text() == "xxx"


def test_workers_killed_all_at_once_are_replaced(
    pool: LocalPool, folder: Path, events: list[str], helper: ThreadPoolExecutor
) -> None:
    watched = [Watched(folder, "one"), Watched(folder, "two")]

    def kill_both() -> None:
        first = [each.begun() for each in watched]
        for process in first:
            process.kill()
        second = [each.begun() for each in watched]
        assert {process.pid for process in first}.isdisjoint(process.pid for process in second)
        for each, process in zip(watched, second, strict=True):
            each.go_on()
            process.out.close()

    events.clear()
    killing = helper.submit(kill_both)
    tasks = [task("block:one"), task("block:two", 2.0)]
    assert dict(pool.run(tasks)) == {tasks[0]: score(), tasks[1]: score(2.0)}
    killing.result()
    assert sorted(event for event in events if "replaced" in event) == [
        "evaluator 0 died (signal 9), replaced",
        "evaluator 1 died (signal 9), replaced",
    ]


def test_a_worker_killed_while_idle_costs_no_result(
    pool: LocalPool, folder: Path, events: list[str], helper: ThreadPoolExecutor
) -> None:
    idle = helper.submit(Watched(folder, "idle").begun)
    assert [result for _, result in pool.run([task("hold:idle")])] == [score()]
    events.clear()
    idle.result().kill()
    tasks = [task(number=number) for number in range(4)]
    assert dict(pool.run(tasks)) == {each: score(number) for number, each in enumerate(tasks)}
    assert "(signal 9), replaced" in "\n".join(events)


def test_ctrl_c_is_left_to_the_driver(pool: LocalPool, folder: Path, helper: ThreadPoolExecutor) -> None:
    watched = Watched(folder, "interrupted")

    def interrupt() -> None:
        process = watched.begun()
        os.kill(process.pid, signal.SIGINT)
        watched.go_on()
        process.out.close()

    interrupting = helper.submit(interrupt)
    assert [result for _, result in pool.run([task("block:interrupted")])] == [score()]
    interrupting.result()


def test_a_run_closed_early_leaves_nothing_behind(pool: LocalPool, folder: Path) -> None:
    watched = Watched(folder, "abandoned")
    run = pool.run([task("block:abandoned"), task("score", 2.0), task("score", 3.0)])
    assert next(run) == (task("score", 2.0), score(2.0))
    run.close()
    process = watched.begun()
    tasks = [task(number=number) for number in range(4, 14)]
    other = pool.run(tasks)
    results = [next(other)]
    watched.go_on()
    results += other
    assert dict(results) == {each: score(number) for number, each in enumerate(tasks, 4)}
    assert len(results) == len(tasks)
    process.out.close()


def test_close_stops_a_worker_in_the_middle_of_an_evaluation(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "endless")
    pool = LocalPool(ScriptedFactory(tmp_path), 2)
    run = pool.run([task("block:endless"), task()])
    assert next(run) == (task(), score())
    process = watched.begun()
    pool.close()
    process.wait()
    with pytest.raises(WorkerError, match="closed in the middle"):
        next(run)
    pool.close()
    with pytest.raises(WorkerError, match="closed"):
        next(pool.run([task()]))


def test_tasks_are_taken_when_a_worker_is_free(tmp_path: Path) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[Task]:
        for number in range(5):
            taken.append(number)
            yield task(number=number)

    with LocalPool(ScriptedFactory(tmp_path), 1) as pool:
        for done, _ in enumerate(pool.run(tasks()), 1):
            assert len(taken) == min(done + 1, 5)  # the next one is under way while this result is digested


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        ("input", DataError, "the data are gone; give others"),
        ("subclass", FactorsError, "factors of another model; give others"),
        ("raises", WorkerError, "evaluator 0 could not start: RuntimeError: no model here"),
        ("dies", WorkerError, "evaluator 0 could not start: signal 9"),
    ],
)
def test_a_factory_that_fails_ends_the_run(tmp_path: Path, broken: str, error: type[Exception], message: str) -> None:
    (tmp_path / "broken").write_text(broken)
    with LocalPool(ScriptedFactory(tmp_path), 1) as pool, pytest.raises(error) as caught:
        next(pool.run([task()]))
    assert type(caught.value) is error
    assert str(caught.value) == message


def test_a_factory_that_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_in_the_driver")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("def factory(): ...", module.__dict__)
    with LocalPool(module.factory, 1) as pool, pytest.raises(WorkerError, match="No module named 'only_in_the_driver'"):
        next(pool.run([task()]))


def test_replacements_that_keep_failing_end_the_run(tmp_path: Path) -> None:
    events: list[str] = []
    with LocalPool(ScriptedFactory(tmp_path), 1, events=events.append) as pool:
        assert list(pool.run([task()])) == [(task(), score())]
        (tmp_path / "broken").write_text("input")
        with pytest.raises(WorkerError, match="3 times in a row: the data are gone") as caught:
            list(pool.run([task("die:once")]))
    assert not isinstance(caught.value, InvalidInputError)
    assert events.count("evaluator 0 could not start (the data are gone; give others), replaced") == 2


def test_workers_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from pool_evaluators import ScriptedFactory
from longrope.search.candidate import Candidate
from longrope.search.evaluation import Task
from longrope.workers.local_pool import LocalPool

pool = LocalPool(ScriptedFactory(Path(sys.argv[1])), 2)
candidate = Candidate((1.0,), 0, 1.0)
list(pool.run([Task(candidate, "hold:idle"), Task(candidate, "block:busy")]))
"""
    idle, busy = Watched(tmp_path, "idle"), Watched(tmp_path, "busy")
    paths = [str(Path(longrope.__file__).parents[1]), str(Path(__file__).parent)]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    ) as driver:
        workers = [idle.begun(), busy.begun()]
        driver.kill()
    try:
        for worker in workers:
            worker.wait()
    except TimeoutError:
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        raise


def test_threads_and_gpus_are_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, GPU-b,-1,3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = dict(os.environ)
    tasks = [task("threads"), task("threads"), task("environment:CUDA_VISIBLE_DEVICES")]
    with LocalPool(ScriptedFactory(tmp_path), 1, threads=2, gpus_per_worker=2) as pool:
        first, second, devices = (result for _, result in pool.run(tasks))
    assert first == second == BlockScore((2.0, 2.0, 2.0), 256, 0.0)
    assert isinstance(devices, BlockScore)
    assert "".join(map(chr, map(int, devices.nll))) == "7,GPU-b"
    assert dict(os.environ) == environment


@pytest.mark.parametrize(
    ("workers", "gpus", "devices", "shares"),
    [
        (2, 0.0, "", ["", ""]),
        (2, 1.0, "03", ["0", "3"]),
        (2, 2.0, "0123", ["0,1", "2,3"]),
        (1, 1.0, "03", ["0"]),
        (4, 0.5, "03", ["0", "3", "0", "3"]),
        (3, 0.25, "5", ["5", "5", "5"]),
        (10, 0.1, "5", ["5"] * 10),
    ],
)
def test_gpus_are_shared_out(workers: int, gpus: float, devices: str, shares: list[str]) -> None:
    assert [device_share(worker, workers, gpus, list(devices)) for worker in range(workers)] == shares


@pytest.mark.parametrize(
    ("workers", "gpus", "visible", "message"),
    [
        (3, 1.0, "0,1", "3 workers with 1 GPUs each do not fit on 2 GPUs; use at most 2 workers"),
        (3, 0.5, "0", "3 workers with 0.5 GPUs each do not fit on 1 GPUs; use at most 2 workers"),
        (1, 1.0, "", "1 workers with 1 GPUs each do not fit on 0 GPUs; use a CPU"),
        (1, 1.5, "0,1", "GPUs per worker is 1.5; give 0, a fraction of 1, or a whole number"),
        (1, -1.0, "0,1", "GPUs per worker is -1.0"),
        (0, 0.0, "", "workers is 0; give at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    workers: int, gpus: float, visible: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(SettingsError, match=f"^{message}"):
        LocalPool(ScriptedFactory(tmp_path), workers, gpus_per_worker=gpus)
