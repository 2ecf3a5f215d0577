from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from longrope.data import file_records
from longrope.data.documents import files_of
from longrope.data.file_records import FileRecords
from longrope.data.hub_records import HubRecords
from longrope.data.order import shuffled
from longrope.exceptions import DataError


def walk(records, epoch=0, place=None):
    """Every record from ``place`` on, with the places of the blocks."""
    place = records.first(epoch) if place is None else place
    found = []
    while place is not None:
        block, following = records.block(epoch, json.loads(json.dumps(place)))
        found.append((place, [block.read(index) for index in range(len(block))]))
        place = following
    return found


def texts(found):
    return [record.fields["text"] for _, block in found for record in block if record is not None]


def of(*files, columns=("text",), text_field="text", key=(0, "a")):
    return FileRecords(files, columns=columns, text_field=text_field, key=key)


def check_epochs_and_places(make, expected):
    """What both kinds of records owe: all once an epoch, an order for each, and reading from any place."""
    records = make()
    epochs = [walk(records, epoch) for epoch in range(2)]
    assert [sorted(texts(epoch)) for epoch in epochs] == [sorted(expected)] * 2
    assert texts(epochs[0]) != texts(epochs[1])
    for epoch, whole in enumerate(epochs):
        for index, (place, _) in enumerate(whole):
            assert walk(make(), epoch, place) == whole[index:]
    assert walk(records, 0) == epochs[0]
    names = [record.name for _, block in epochs[0] for record in block if record is not None]
    assert len(set(names)) == len(names)


class TestOrder:
    def test_is_a_permutation_that_the_key_decides(self):
        for count in (0, 1, 2, 1000):
            assert sorted(shuffled(count, 1).tolist()) == list(range(count))
        orders = {tuple(shuffled(50, *key).tolist()) for key in [(0,), (1,), ("1",), (1, 2), (12,), ("a", 0)]}
        assert len(orders) == 6

    def test_never_changes(self):
        assert shuffled(10, 0, "books", 1).tolist() == [5, 7, 1, 6, 4, 3, 8, 0, 2, 9]

    def test_is_even(self):
        first = [int(shuffled(5, seed)[0]) for seed in range(2000)]
        assert all(330 < first.count(value) < 470 for value in range(5))


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(file_records, "BLOCK", 7)
        monkeypatch.setattr(file_records, "SCAN", 11)
        lines = [json.dumps({"text": f"line {index} é"}, ensure_ascii=False) for index in range(30)]
        (tmp_path / "a.jsonl").write_text("\n".join([*lines[:10], "", *lines[10:]]), encoding="utf-8")  # no last end
        (tmp_path / "b.jsonl").write_bytes(b'{"text": "windows"}\r\n \r\n')
        (tmp_path / "empty.jsonl").touch()
        (tmp_path / "c.txt").write_text("a whole file\n")
        rows = pyarrow.table({"id": list(range(11)), "text": [f"row {index}" for index in range(11)]})
        pyarrow.parquet.write_table(rows, tmp_path / "d.parquet", row_group_size=4)
        (tmp_path / "e.parquet").touch()
        return tmp_path

    EXPECTED = (*(f"line {i} é" for i in range(30)), "windows", "a whole file\n", *(f"row {i}" for i in range(11)))

    def test_all_once_an_epoch_from_any_place(self, folder):
        check_epochs_and_places(lambda: of(*files_of(folder)), self.EXPECTED)

    def test_names_lead_to_the_text(self, folder):
        for _, block in walk(of(*files_of(folder))):
            for record in filter(None, block):
                path, _, number = record.name.rpartition(":")
                if path.endswith(".jsonl"):
                    line = Path(path).read_text(encoding="utf-8").split("\n")[int(number) - 1]
                    assert json.loads(line) == record.fields
                elif path.endswith(".parquet"):
                    assert record.fields == {"text": f"row {number}"}

    def test_lines_are_shuffled_over_the_whole_source(self, tmp_path):
        for name in "ab":
            (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name}"}}\n' for _ in range(500)))
        order = "".join(texts(walk(of(*files_of(tmp_path)))))
        assert max(map(len, order.replace("ba", "b a").replace("ab", "a b").split())) < 30

    def test_row_groups_and_their_rows_are_shuffled(self, tmp_path):
        rows = pyarrow.table({"text": [f"{index:03}" for index in range(300)]})
        pyarrow.parquet.write_table(rows, tmp_path / "a.parquet", row_group_size=100)
        blocks = [
            [record.fields["text"] for record in block] for _, block in walk(of(tmp_path / "a.parquet", key=(1, "a")))
        ]
        assert blocks != sorted(blocks)
        for block in blocks:
            assert len({text[0] for text in block}) == 1
            assert block != sorted(block)

    def test_identity_follows_the_data(self, folder):
        identity = of(*files_of(folder)).identity
        assert of(*files_of(folder), key=(1, "b")).identity == identity
        (folder / "c.txt").write_text("a longer file\n")
        assert of(*files_of(folder)).identity != identity

    def test_all_columns(self, folder):
        found = walk(of(folder / "d.parquet", columns=None))
        assert found[0][1][0].fields.keys() == {"id", "text"}

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("a.jsonl", b'{"text": "torn\n', "line 1"),
            ("a.jsonl", b'{"text": "fine"}\n[1]\n', "line 2"),
            ("a.jsonl", b"caf\xe9\n", "not UTF-8"),
            ("a.parquet", b"no Parquet", "cannot be read as Parquet"),
            ("a.txt", b"\0", "NUL"),
        ],
    )
    def test_bad_files_are_named(self, tmp_path, name, content, expected):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=expected) as caught:
            walk(of(tmp_path / name))
        assert name in str(caught.value)

    def test_plain_text_where_records_are_needed(self, tmp_path):
        (tmp_path / "a.txt").write_text("text")
        with pytest.raises(DataError, match=r"a\.txt.*needs records"):
            of(tmp_path / "a.txt", text_field=None)

    def test_a_file_that_vanishes(self, folder):
        records = of(*files_of(folder))
        (folder / "c.txt").unlink()
        with pytest.raises(DataError, match=r"c\.txt.*No such file"):
            walk(records)


class TestHub:
    EXPECTED = tuple(f"{shard}-{row}" for shard in range(3) for row in range(20))

    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        """A hub that holds three shards under owner/books; notes how it is asked."""
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr("longrope.data.hub_records.BLOCK", 6)
        load, asked = datasets.load_dataset, []
        for shard in range(3):
            rows = [{"id": row, "text": f"{shard}-{row}"} for row in range(20)]
            (tmp_path / f"{shard}.jsonl").write_text("\n".join(map(json.dumps, rows)))

        def load_dataset(path, **options):
            asked.append((path, options))
            if path not in ("owner/books", "json"):
                raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist\non the Hub")
            return load("json", data_files=str(tmp_path / "*.jsonl"), split="train", streaming=True)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    def make(self, name="owner/books", files=(), columns=("text",), **options):
        options = {"config": "en", "split": "validation", "revision": "v1", **options}
        return HubRecords(name, files=files, columns=columns, key=(0, "a"), **options)

    def test_all_once_an_epoch_from_any_place(self, hub):
        check_epochs_and_places(self.make, self.EXPECTED)
        asked = {"name": "en", "split": "validation", "revision": "v1", "streaming": True}
        assert hub[0] == ("owner/books", asked)

    def test_shards_are_shuffled_for_each_epoch(self, hub):
        orders = [[text[0] for text in texts(walk(self.make(), epoch))[::20]] for epoch in range(8)]
        assert all(sorted(order) == ["0", "1", "2"] for order in orders)
        assert len({tuple(order) for order in orders}) > 2

    def test_going_on_opens_a_shard_once(self, hub, monkeypatch):
        records = self.make()
        opened = []
        shard = type(records._data).shard
        monkeypatch.setattr(type(records._data), "shard", lambda *a, **o: opened.append(o["index"]) or shard(*a, **o))
        walk(records)
        assert sorted(opened) == [0, 1, 2]

    def test_survives_a_change_of_process(self, hub):
        records = self.make()
        _, place = records.block(0, records.first(0))
        copy = pickle.loads(pickle.dumps(records))
        assert walk(copy, 0, place) == walk(records, 0, place)

    def test_files_are_named_by_their_address(self, hub):
        self.make(files=("data/a.jsonl.zst", "data/b*.jsonl"))
        path, options = hub[-1]
        assert path == "json"
        assert options["data_files"] == [
            "hf://datasets/owner/books@v1/data/a.jsonl.zst",
            "hf://datasets/owner/books@v1/data/b*.jsonl",
        ]
        for files in (("a.jsonl", "b.parquet"), ("a.csv",), ("a",)):
            with pytest.raises(DataError, match="must all be of one kind"):
                self.make(files=files)

    def test_unknown_dataset(self, hub):
        with pytest.raises(DataError, match="'owner/other' cannot be read") as caught:
            self.make("owner/other")
        assert "\n" not in str(caught.value)

    def test_a_stream_that_breaks(self, hub, tmp_path):
        (tmp_path / "2.jsonl").write_text('{"text": "2-0", "id": 1}\n{"text": torn')
        with pytest.raises(DataError, match="'owner/books' stopped in shard 2"):
            walk(self.make())
