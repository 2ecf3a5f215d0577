"""The journal: nothing appended is lost, nothing torn is read, nobody else's run is continued."""

import json
import math
import multiprocessing
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.exceptions import InvalidInputError, RunExistsError, RunFailedError
from longrope.runs.journal import Journal, read_journal

SETTINGS = {"target_length": 2048, "search": {"seed": 1, "n_hat": (0, 4)}, "samples": ["a1", "b2"]}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
events = st.dictionaries(st.text().filter(lambda key: key != "kind"), values, max_size=3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "evaluations.jsonl"


def test_the_file_is_a_header_and_one_line_per_event(path):
    with Journal.create(path, SETTINGS) as journal:
        journal.append({"kind": "score", "nll": 1.5})
        journal.append({"kind": "failed", "reason": "two\nlines"})
        journal.sync()
    header, *lines = map(json.loads, path.read_text().splitlines())
    assert header == {"kind": "header", "schema_version": 1, "settings": json.loads(json.dumps(SETTINGS))}
    assert lines == [{"kind": "score", "nll": 1.5}, {"kind": "failed", "reason": "two\nlines"}]
    assert path.read_bytes().endswith(b"\n")


@settings(deadline=None, max_examples=30)
@given(st.lists(events, max_size=5), st.lists(events, max_size=3))
def test_events_are_read_back_exactly(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("journal") / "evaluations.jsonl"
    with Journal.create(path, SETTINGS) as journal:
        for event in first:
            journal.append(event)
        assert exact(journal.events) == exact(first)
    with Journal.resume(path, SETTINGS) as journal:
        for event in second:
            journal.append(event)
        assert exact(journal.events) == exact(first + second)
    assert exact(read_journal(path)[1]) == exact(first + second)


def exact(value):
    """A form in which 0.0, -0.0 and 0 differ."""
    return json.dumps(value, sort_keys=True)


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(deadline=None, max_examples=200)
def test_floats_keep_every_bit(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "floats.jsonl"
    path.unlink(missing_ok=True)
    with Journal.create(path, {}) as journal:
        journal.append({"nll": value})
    assert read_journal(path)[1][0]["nll"].hex() == value.hex()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_floats_are_refused_and_nothing_is_written(path, value):
    with Journal.create(path, SETTINGS) as journal:
        before = path.read_bytes()
        with pytest.raises(AssertionError):
            journal.append({"nll": [value]})
        assert path.read_bytes() == before
        assert journal.events == []


def test_a_last_line_torn_at_any_byte_is_cut_off(path):
    with Journal.create(path, SETTINGS) as journal:
        journal.append({"number": 1})
        whole = path.read_bytes()
        journal.append({"number": 2, "nll": [1.25, 3e-07], "text": "\u00fc"})
    line = path.read_bytes()[len(whole) :]
    for length in range(len(line)):
        path.write_bytes(whole + line[:length])
        assert read_journal(path)[1] == [{"number": 1}]
        with Journal.resume(path, SETTINGS) as journal:
            assert journal.events == [{"number": 1}]
            assert path.read_bytes() == whole
            journal.append({"number": 3})
        assert read_journal(path)[1] == [{"number": 1}, {"number": 3}]


@pytest.mark.parametrize(
    "tail", [b"{\n", b"\n", b"\x00\x00\x00", b"\x00\x00\n", b"\xff\xfe\n", b"[1]\n", b'{"a":NaN}\n']
)
def test_an_invalid_last_line_is_cut_off(path, tail):
    with Journal.create(path, SETTINGS) as journal:
        journal.append({"number": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with Journal.resume(path, SETTINGS) as journal:
        assert journal.events == [{"number": 1}]
    assert path.read_bytes() == whole


def test_a_header_torn_at_any_byte_is_written_again(path):
    Journal.create(path, SETTINGS).close()
    header = path.read_bytes()
    for length in range(len(header)):
        path.write_bytes(header[:length])
        with Journal.resume(path, SETTINGS) as journal:
            assert journal.events == []
        assert path.read_bytes() == header


@pytest.mark.parametrize("tail", [b'{"number": 2}\n', b'{"num'])
def test_an_invalid_line_elsewhere_is_an_error_that_names_it(path, tail):
    with Journal.create(path, SETTINGS) as journal:
        journal.append({"number": 1})
    damaged = path.read_bytes() + b'{"numb\n' + tail
    path.write_bytes(damaged)
    with pytest.raises(InvalidInputError, match="line 3"):
        Journal.resume(path, SETTINGS)
    assert path.read_bytes() == damaged


def test_changed_settings_are_refused_with_each_difference(path):
    Journal.create(path, SETTINGS).close()
    with path.open("ab") as stream:
        stream.write(b'{"torn')
    before = path.read_bytes()
    changed = {"search": {"seed": 2, "n_hat": [0, 8]}, "samples": ["a1"], "target_length": 2048, "dtype": "bfloat16"}
    with pytest.raises(RunExistsError) as caught:
        Journal.resume(path, changed)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.partition("(")[2].partition(")")[0].split("; ") == [
        "search.seed: then 1, now 2",
        "search.n_hat.1: then 4, now 8",
        'samples: then ["a1", "b2"], now ["a1"]',
        'dtype: then absent, now "bfloat16"',
    ]
    assert path.read_bytes() == before, "a refused journal is left alone"
    with pytest.raises(RunExistsError, match=r"search: then .*, now absent"):
        Journal.resume(path, {key: value for key, value in SETTINGS.items() if key != "search"})
    Journal.resume(path, {**SETTINGS, "search": {"n_hat": [0, 4], "seed": 1}}).close()


def test_many_differences_are_counted(path):
    Journal.create(path, {f"setting{i}": 0 for i in range(20)}).close()
    with pytest.raises(RunExistsError, match="setting7: then 0, now 1; and 12 more"):
        Journal.resume(path, {f"setting{i}": 1 for i in range(20)})


def test_create_refuses_a_file_that_is_there(path):
    Journal.create(path, SETTINGS).close()
    before = path.read_bytes()
    with pytest.raises(RunExistsError, match="holds another run"):
        Journal.create(path, SETTINGS)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b'{"a": 1}\n{"b": 2}\n', b"\x80\x00"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="not the journal"):
        Journal.resume(path, SETTINGS)
    assert path.read_bytes() == content


def test_an_unknown_schema_version_is_refused(path):
    path.parent.mkdir()
    path.write_bytes(b'{"kind": "header", "schema_version": 2, "settings": {}}\n')
    with pytest.raises(InvalidInputError, match="schema_version is 2, this longrope reads 1"):
        Journal.resume(path, {})


def test_a_missing_journal_cannot_be_resumed_or_read(path):
    with pytest.raises(InvalidInputError, match="does not exist"):
        Journal.resume(path, SETTINGS)
    with pytest.raises(InvalidInputError, match="is not a file"):
        read_journal(path)
    assert not path.exists()


def test_a_second_writer_is_refused_until_the_first_has_closed(path):
    with Journal.create(path, SETTINGS) as journal:
        with pytest.raises(RunExistsError, match="another process"):
            Journal.resume(path, SETTINGS)
        journal.append({"number": 1})
        assert read_journal(path)[1] == [{"number": 1}], "reading needs no lock"
    journal.close()
    with pytest.raises(AssertionError):
        journal.append({"number": 2})
    with Journal.resume(path, SETTINGS) as journal:
        assert journal.events == [{"number": 1}]


WRITER = """
import sys
from longrope.runs.journal import Journal
journal = Journal.create(sys.argv[1], {"seed": 1})
for number in range(1000):
    journal.append({"number": number})
    print(number, flush=True)
sys.stdin.read()
"""


def test_kill_9_loses_nothing_and_frees_the_lock(path):
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        while writer.stdout.readline().strip() != "20":
            assert writer.poll() is None
        with pytest.raises(RunExistsError, match="another process"):
            Journal.resume(path, {"seed": 1})
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read().split("\n")  # a torn last number may follow the last newline
    with Journal.resume(path, {"seed": 1}) as journal:
        assert [event["number"] for event in journal.events] == list(range(len(journal.events)))
        assert len(journal.events) >= 21 + len(said) - 1


def _append_with_little_room(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Journal.create(path, {}) as journal:
        journal.append({"number": 1})
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, resource.RLIM_INFINITY))
        with pytest.raises(RunFailedError, match="cannot write"):
            journal.append({"number": 2, "text": "x" * 100})
        assert path.read_bytes() == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.append({"number": 3})
        assert journal.events == [{"number": 1}, {"number": 3}]


def test_a_full_disk_fails_the_run_and_leaves_no_half_line(path):
    process = multiprocessing.get_context("spawn").Process(target=_append_with_little_room, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert read_journal(path)[1] == [{"number": 1}, {"number": 3}]
