from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from longrope.data import documents
from longrope.data.documents import Document, read_documents
from longrope.exceptions import DataError


def texts(source, **options):
    return [document.text for document in read_documents(source, **options)]


def error(source, **options):
    with pytest.raises(DataError) as caught:
        list(read_documents(source, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_parquet(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


class TestTextFiles:
    @pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT"])
    def test_is_one_document_named_by_its_path(self, tmp_path, name):
        path = tmp_path / name
        path.write_text("Grüße\nan alle", encoding="utf-8")
        assert list(read_documents(path)) == [Document(str(path), "Grüße\nan alle")]
        assert list(read_documents(str(path))) == [Document(str(path), "Grüße\nan alle")]

    def test_line_ends_and_byte_order_mark_do_not_matter(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
        assert texts(path) == ["one\ntwo\nthree\n"]

    @pytest.mark.parametrize("data", [b"MZ\0\1\2", "text".encode("utf-16"), b"\x89PNG\r\n\x1a\n", b"caf\xe9"])
    def test_binary_or_other_encodings_are_refused(self, tmp_path, data):
        path = tmp_path / "a.txt"
        path.write_bytes(data)
        message = error(path)
        assert str(path) in message
        assert "UTF-8" in message

    def test_empty_file(self, tmp_path):
        path = tmp_path / "a.txt"
        path.touch()
        assert "empty file" in error(path)

    def test_blank_file(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text(" \n\n")
        assert "holds no text" in error(path)


class TestJsonLines:
    def write(self, tmp_path, *lines):
        path = tmp_path / "a.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def test_is_a_document_a_line_named_by_path_and_line(self, tmp_path):
        path = self.write(tmp_path, '{"text": "one"}', "", '{"text": "z\\u00e9ro", "id": 3}', '{"text": ""}')
        assert list(read_documents(path)) == [Document(f"{path}:1", "one"), Document(f"{path}:3", "zéro")]

    def test_field_is_chosen_and_null_is_no_text(self, tmp_path):
        path = self.write(tmp_path, '{"text": 1, "body": "one"}', '{"body": null}', '{"body": "two"}')
        assert texts(path, field="body") == ["one", "two"]

    def test_is_read_a_line_at_a_time(self, tmp_path):
        path = self.write(tmp_path, '{"text": "one"}', "not JSON")
        stream = read_documents(path)
        assert next(stream).text == "one"
        with pytest.raises(DataError, match="line 2"):
            next(stream)

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ('{"text": "torn', "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ('["text"]', "not a JSON object"),
            ('{"title": "x", "content": "y"}', "its fields are 'title', 'content'"),
            ("{}", "its fields are none"),
            ('{"text": 5}', "not text but int"),
            ('{"text": ["a"]}', "not text but list"),
            ('{"text": "\\ud800 half a pair"}', "not valid Unicode"),
            ('{"text": "a\0b"}', "NUL"),
        ],
    )
    def test_bad_line_is_named(self, tmp_path, line, expected):
        path = self.write(tmp_path, '{"text": "one"}', line)
        message = error(path)
        assert expected in message
        assert "line 2" in message
        assert str(path) in message

    def test_line_that_is_not_utf8_is_named(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "one"}\n{"text": "caf\xe9"}\n')
        assert "line 2" in error(path)


class TestParquet:
    def test_is_a_document_a_row_named_by_path_and_row(self, tmp_path, monkeypatch):
        monkeypatch.setattr(documents, "PARQUET_BATCH", 3)
        rows = [f"text {i}" if i % 4 else None for i in range(11)]
        path = write_parquet(tmp_path / "a.parquet", {"id": list(range(11)), "text": rows}, row_group_size=5)
        assert list(read_documents(path)) == [Document(f"{path}:{i}", f"text {i}") for i in range(11) if i % 4]

    def test_column_is_chosen(self, tmp_path):
        path = write_parquet(tmp_path / "a.parquet", {"text": [1, 2], "body": ["one", "two"]})
        assert texts(path, field="body") == ["one", "two"]

    def test_dictionary_encoded_text(self, tmp_path):
        column = pyarrow.array(["one", "two", "one"]).dictionary_encode()
        assert texts(write_parquet(tmp_path / "a.parquet", {"text": column})) == ["one", "two", "one"]

    def test_missing_column(self, tmp_path):
        path = write_parquet(tmp_path / "a.parquet", {"id": [1], "body": ["one"]})
        message = error(path)
        assert str(path) in message
        assert "no field 'text'" in message
        assert "'id', 'body'" in message

    def test_column_that_is_not_text(self, tmp_path):
        path = write_parquet(tmp_path / "a.parquet", {"text": [1]})
        message = error(path)
        assert str(path) in message
        assert "not text but int" in message

    def test_not_parquet(self, tmp_path):
        path = tmp_path / "a.parquet"
        path.write_text("no Parquet at all")
        assert f"{str(path)!r} cannot be read as Parquet" in error(path)

    def test_no_rows(self, tmp_path):
        path = write_parquet(tmp_path / "a.parquet", {"text": pyarrow.array([], pyarrow.string())})
        assert "holds no text" in error(path)

    def test_without_pyarrow(self, tmp_path, monkeypatch):
        path = write_parquet(tmp_path / "a.parquet", {"text": ["one"]})
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert "pip install longrope[data]" in error(path)


class TestFolders:
    def test_files_below_in_the_order_of_their_paths(self, tmp_path):
        for name in ("b.txt", "a/z.md", "a/b/c.txt", "a.txt", "notes.rst", ".hidden.txt", ".git/x.txt", "a/empty.txt"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("" if "empty" in name else name)
        (tmp_path / "folder.txt").mkdir()
        (tmp_path / "c.jsonl").write_text(json.dumps({"text": "c1"}) + "\n" + json.dumps({"text": "c2"}))
        write_parquet(tmp_path / "d.parquet", {"text": ["d"]})
        (tmp_path / "e.parquet").touch()
        assert texts(tmp_path) == ["a/b/c.txt", "a/z.md", "a.txt", "b.txt", "c1", "c2", "d"]
        assert all(Path(d.name.rpartition(":")[0] or d.name).is_file() for d in read_documents(tmp_path))

    def test_a_hidden_folder_can_be_given_itself(self, tmp_path):
        (tmp_path / ".data").mkdir()
        (tmp_path / ".data" / "a.txt").write_text("one")
        assert texts(tmp_path / ".data") == ["one"]

    def test_empty_folder(self, tmp_path):
        assert "holds no .txt, .md, .jsonl, .parquet files" in error(tmp_path)
        (tmp_path / "a.csv").write_text("1,2")
        assert "holds no .txt, .md, .jsonl, .parquet files" in error(tmp_path)

    def test_only_empty_files(self, tmp_path):
        (tmp_path / "a.txt").touch()
        assert "holds no text" in error(tmp_path)

    def test_bad_file_is_named_when_its_turn_comes(self, tmp_path):
        (tmp_path / "a.txt").write_text("one")
        (tmp_path / "b.txt").write_bytes(b"\0")
        stream = read_documents(tmp_path)
        assert next(stream).text == "one"
        with pytest.raises(DataError, match=r"b\.txt"):
            next(stream)

    def test_file_that_vanishes(self, tmp_path):
        (tmp_path / "a.txt").write_text("one")
        stream = read_documents(tmp_path)
        (tmp_path / "a.txt").unlink()
        with pytest.raises(DataError, match=r"a\.txt.*No such file"):
            list(stream)


class TestSources:
    @pytest.mark.parametrize("name", ["missing.txt", "a/b/c", "./missing", "/nowhere/at/all", "missing.jsonl", ""])
    def test_what_is_neither_a_path_nor_a_dataset(self, tmp_path, monkeypatch, name):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        message = error(name)
        assert "does not exist" in message or "holds no" in message  # "" is the current folder
        assert repr(name) in message or name == ""

    def test_is_refused_at_once(self):
        with pytest.raises(DataError):
            read_documents("/nowhere/at/all.txt")

    @pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt.gz", "noextension"])
    def test_other_kinds_of_files(self, tmp_path, name):
        (tmp_path / name).write_text("one")
        assert ".txt, .md, .jsonl, .parquet" in error(tmp_path / name)

    def test_special_file(self):
        assert "neither a regular file nor a folder" in error("/dev/null")


class TestHubDatasets:
    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        """A hub that holds two shards under owner/books; notes how it is asked."""
        monkeypatch.chdir(tmp_path)
        datasets = pytest.importorskip("datasets")
        load = datasets.load_dataset
        stored = tmp_path / "stored"
        stored.mkdir()
        for shard in range(2):
            rows = [{"id": i, "text": f"{shard}-{i}", "none": None} for i in range(50)]
            (stored / f"{shard}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        columns = {"id": "int64", "text": "string", "none": "string"}
        features = datasets.Features({name: datasets.Value(kind) for name, kind in columns.items()})
        asked = SimpleNamespace(calls=[])

        def load_dataset(path, **options):
            asked.calls.append((path, dict(options)))
            if path != "owner/books":
                raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist\non the Hub")
            options.pop("name"), options.pop("revision")
            files = {"train": str(stored / "*.jsonl")}
            return load("json", data_files=files, features=features, cache_dir=str(tmp_path / "cache"), **options)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    def test_is_streamed_and_shuffled_by_seed(self, hub):
        first = list(read_documents("owner/books", seed=1))
        assert sorted(d.text for d in first) == sorted(f"{shard}-{i}" for shard in range(2) for i in range(50))
        assert [d.name for d in first] == [f"owner/books:{i}" for i in range(100)]
        assert first == list(read_documents("owner/books", seed=1))
        assert first != list(read_documents("owner/books", seed=2))
        assert all(options["streaming"] for _, options in hub.calls)

    def test_split_revision_and_config_are_passed_on(self, hub):
        list(read_documents("owner/books", split="train", revision="v1", config="en"))
        expected = {"name": "en", "split": "train", "revision": "v1", "streaming": True}
        assert hub.calls == [("owner/books", expected)]

    def test_unknown_split(self, hub):
        message = error("owner/books", split="nope")
        assert "split 'nope'" in message
        assert "Bad split" in message

    @pytest.mark.parametrize("name", ["owner/other", "other", "v1.5-data"])
    def test_unknown_dataset(self, hub, name):
        message = error(name)
        assert "no file or folder" in message
        assert f"Dataset '{name}' doesn't exist on the Hub" in message

    def test_missing_field(self, hub):
        assert "no field 'body' in owner/books; its fields are 'id', 'text', 'none'" in error(
            "owner/books", field="body"
        )

    def test_field_that_is_not_text(self, hub):
        assert "not text but int" in error("owner/books", field="id")

    def test_no_text_at_all(self, hub):
        assert "holds no text" in error("owner/books", field="none")

    def test_a_path_comes_first(self, hub, tmp_path):
        (tmp_path / "owner" / "books").mkdir(parents=True)
        (tmp_path / "owner" / "books" / "a.txt").write_text("one")
        assert texts("owner/books") == ["one"]
        assert hub.calls == []

    def test_stream_that_breaks_off(self, monkeypatch):
        datasets = pytest.importorskip("datasets")

        def rows():
            yield {"text": "one"}
            raise ConnectionError("the network\nis gone" + "!" * 1000)

        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows))
        message = error("owner/books")
        assert "the network is gone!" in message
        assert len(message) < 400

    def test_fields_that_are_known_only_from_the_rows(self, monkeypatch):
        datasets = pytest.importorskip("datasets")
        stream = datasets.IterableDataset.from_generator(lambda: iter([{"body": "one"}]))
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
        assert texts("owner/books", field="body") == ["one"]
        assert "its fields are 'body'" in error("owner/books")

    def test_without_datasets(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        assert "pip install longrope[data]" in error("owner/books")
