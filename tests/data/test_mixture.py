from __future__ import annotations

import math

import pytest

from longrope.data.mixture import Mixture, Source, read_mixture, ready_mixtures
from longrope.data.templates import TEMPLATES
from longrope.data.templates.few_shot import FewShot
from longrope.data.templates.text import Text
from longrope.exceptions import DataError, InvalidInputError, SettingsError

WHOLE = """\
# All keys there are.
bos: true
eos: false
decontaminate: [eval.txt]
ngram: 8
sources:
  books:
    path: books
    weight: 0.5
    min_length: 2k
    max_length: 131072
    field: body
  web:
    hub: owner/web
    weight: 2
    split: validation
    config: en
    revision: v1
    files: [data/*.jsonl.zst]
  tasks:
    path: tasks.jsonl
    template: {name: few-shot, length: 32k, loss: all}
  pairs:
    path: tasks.jsonl
    template: instruction
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("text")
    (tmp_path / "eval.txt").write_text("text")
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    return tmp_path


def write(folder, text):
    path = folder / "mixture.yaml"
    path.write_text(text)
    return path


def error(folder, text):
    with pytest.raises(InvalidInputError) as caught:
        read_mixture(write(folder, text))
    message = str(caught.value)
    assert "\n" not in message
    assert "mixture.yaml" in message
    return message


class TestFiles:
    def test_says_everything(self, folder):
        mixture = read_mixture(write(folder, WHOLE))
        assert (mixture.bos, mixture.eos, mixture.ngram) == (True, False, 8)
        assert mixture.decontaminate == (folder / "eval.txt",)
        books, web, tasks, pairs = mixture.sources
        assert books == Source(
            name="books",
            path=folder / "books",
            weight=0.5,
            min_length=2048,
            max_length=131072,
            template=Text(field="body"),
        )
        assert web == Source(
            name="web",
            hub="owner/web",
            weight=2.0,
            split="validation",
            config="en",
            revision="v1",
            files=("data/*.jsonl.zst",),
        )
        assert tasks.template == FewShot(length=32768, loss="all")
        assert pairs.template.name == "instruction"

    def test_defaults(self, folder):
        mixture = read_mixture(write(folder, "sources: {a: {path: books}}"))
        assert (mixture.bos, mixture.eos, mixture.decontaminate) == (None, True, ())
        assert mixture.sources == (Source(name="a", path=folder / "books"),)
        assert read_mixture(write(folder, "bos: auto\nsources: {a: {path: books}}")) == mixture

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "is empty"),
            ("- a", "no mapping"),
            ("sources: [a", "line 1 is not valid YAML"),
            ("a: 1\nsources:\n  b: {path: books}\n", "line 1: 'a' is no key of a mixture"),
            ("sources:\n", "line 1: the mixture is empty"),
            ("sources: {}\n", "the mixture is empty"),
            ("bos: true\n", "the mixture is empty"),
            ("sources: [books]\n", "sources is no mapping"),
            ("sources:\n  a: books\n", "line 2: source 'a' is no mapping"),
            (
                "sources:\n  a: {path: books}\n  a: {path: books}\n",
                "line 3: 'a' is given twice; the first is in line 2",
            ),
            ("sources:\n  a:\n    path: books\n    wieght: 1\n", "line 4: 'wieght' is no key of a source"),
            ("sources:\n  a:\n    path: books\n    path: books\n", "line 4: 'path' is given twice"),
            ("sources:\n  1: {path: books}\n", "the key 1 is not text"),
            ("sources:\n  a: {weight: 1}\n", "line 2: source 'a' needs either a path or a hub id"),
            ("sources:\n  a: {path: books, hub: b/c}\n", "needs either a path or a hub id"),
            ("sources:\n  a: {path: nowhere}\n", "'nowhere' does not exist; paths are relative to the mixture file"),
            ("sources:\n  a: {hub: a/b/c}\n", "'a/b/c' is not the id of a dataset"),
            ("sources:\n  a: {path: books, revision: v1}\n", "revision and files are for hub datasets"),
            ("sources:\n  a: {path: books, weight: -1}\n", "the weight of source 'a' is -1.0"),
            ("sources:\n  a: {path: books, weight: .nan}\n", "the weight of source 'a' is nan"),
            ("sources:\n  a: {path: books, weight: much}\n", "weight is 'much'; give a number"),
            ("sources:\n  a: {path: books, weight: true}\n", "weight is True"),
            ("sources:\n  a: {path: books, weight: 0}\n", "the weights of the mixture sum to 0"),
            ("sources:\n  a: {path: books, min_length: 2x}\n", "min_length: length '2x'"),
            ("sources:\n  a: {path: books, min_length: 5, max_length: 4}\n", "no document has such a length"),
            ("sources:\n  a: {path: books, split: 3}\n", "split is 3; give text"),
            (
                "sources:\n  a: {path: books, template: zero-shot}\n",
                "template 'zero-shot' is not known; known are text",
            ),
            ("sources:\n  a: {path: books, template: {loss: all}}\n", "template has no name"),
            ("sources:\n  a: {path: books, template: {name: few-shot, lenth: 1}}\n", "has no option 'lenth'; it has"),
            (
                "sources:\n  a: {path: books, template: {name: few-shot, output: 3}}\n",
                "'output' of template 'few-shot'",
            ),
            ("sources:\n  a: {path: books, template: {name: few-shot, loss: some}}\n", "loss 'some'"),
            ("sources:\n  a: {path: books, template: {name: tokenized}}\n", "needs vocab_size"),
            ("sources:\n  a: {path: books, field: x, template: few-shot}\n", "field is for plain text"),
            ("bos: maybe\nsources:\n  a: {path: books}\n", "line 1: bos is 'maybe'; give auto, true or false"),
            ("eos: 1\nsources:\n  a: {path: books}\n", "eos is 1; give true or false"),
            ("decontaminate: gone.txt\nsources:\n  a: {path: books}\n", "'gone.txt' does not exist"),
            ("ngram: 0\nsources:\n  a: {path: books}\n", "ngram"),
            ("sources: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
        ],
    )
    def test_mistakes_are_named_in_one_line(self, folder, text, expected):
        assert expected in error(folder, text)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="does not exist"):
            read_mixture(tmp_path / "missing.yaml")

    def test_field_and_split_belong_into_it(self, folder):
        with pytest.raises(SettingsError, match="says field and split for each source"):
            read_mixture(write(folder, WHOLE), field="body")


class TestSingleSources:
    def test_files_and_folders(self, folder):
        mixture = read_mixture(folder / "books", field="body")
        assert mixture == Mixture(sources=(Source(name="books", path=folder / "books", template=Text(field="body")),))
        assert read_mixture(str(folder / "tasks.jsonl")).sources[0].path == folder / "tasks.jsonl"

    def test_hub_datasets(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        source = read_mixture("owner/books", split="validation").sources[0]
        assert (source.name, source.hub, source.split) == ("books", "owner/books", "validation")

    @pytest.mark.parametrize("name", ["missing.jsonl", "a/b/c", "/nowhere"])
    def test_missing(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match="does not exist"):
            read_mixture(name)


class TestMixtures:
    def test_need_a_source(self):
        with pytest.raises(DataError, match="empty"):
            Mixture(sources=())

    def test_names_are_unique(self, tmp_path):
        with pytest.raises(DataError, match="same name"):
            Mixture(sources=(Source(name="a", path=tmp_path), Source(name="a", path=tmp_path)))


@pytest.mark.parametrize("name", sorted(ready_mixtures()))
def test_ready_mixtures_can_be_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixture = read_mixture(name)
    assert mixture.sources
    assert all(source.hub is not None for source in mixture.sources)  # nothing of this machine
    assert math.isclose(sum(source.weight for source in mixture.sources), 1)


def test_there_are_ready_mixtures():
    assert {"together-32k-pretrain", "together-32k-instruct", "longlora-redpajama", "easycontext-64k"} <= set(
        ready_mixtures()
    )


def test_templates_are_found_by_their_names():
    assert all(name == template.name for name, template in TEMPLATES.items())
