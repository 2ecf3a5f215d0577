"""GGUF files with our factors: llama.cpp finds its two lists, and every other byte is as it was."""

import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.cli.main import main
from longrope.exceptions import (
    FactorsError,
    InvalidInputError,
    RunExistsError,
    SettingsError,
    UnsupportedModelError,
)
from longrope.export import gguf_file
from longrope.export.gguf import LONG, PLAIN, SHORT, export_gguf
from longrope.export.gguf_file import GGUFFile
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

gguf = pytest.importorskip("gguf")

IDENTITY = RopeFactors.identity(1e4, 16, 256)
LAMBDAS = (1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1)
FAR = IDENTITY.replace(lambdas=LAMBDAS, target_length=2048, attention_factor=1.15)
NEAR = FAR.replace(lambdas=tuple(1 + (each - 1) / 4 for each in LAMBDAS), target_length=256)
MIDDLE = FAR.replace(lambdas=tuple(1 + (each - 1) / 2 for each in LAMBDAS), target_length=512)
TWO = FactorSchedule((Window(256, NEAR), Window(2048, FAR)))
THREE = TWO.with_window(MIDDLE)

OURS = ("context_length", "rope.scaling.type", "rope.scaling.original_context_length", "rope.scaling.attn_factor")


@pytest.fixture
def make_base(tmp_path):
    """Writes a small GGUF file with every kind of metadata and several quantisations; gives its path.

    ``keys`` are of the architecture, set or changed; None removes one.
    """

    def make(architecture="llama", name="base.gguf", tensors=(), general=None, endianess="LITTLE", **keys):
        writer = gguf.GGUFWriter(tmp_path / name, architecture, endianess=gguf.GGUFEndian[endianess])
        for key, value in {"general.name": "tiny \u00e9", **(general or {})}.items():
            writer.add_key_value(key, value, kind_of(value))
        said = {"context_length": 256, "embedding_length": 64, "attention.head_count": 4, "rope.freq_base": 1e4, **keys}
        for key, value in said.items():
            if value is not None:
                writer.add_key_value(f"{architecture}.{key.replace('__', '.')}", value, kind_of(value))
        writer.add_custom_alignment(64)
        writer.add_array("tokenizer.ggml.tokens", ["<s>", "\u2581a", "\n", "b" * 300])
        writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, -2.0, -3.25])
        writer.add_array("tokenizer.ggml.token_type", [3, 1, 1, 1])
        writer.add_bool("tokenizer.ggml.add_bos_token", True)
        writer.add_key_value("some.bytes", bytes(range(7)), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT8)
        for kind, value in (("UINT8", 7), ("INT16", -7), ("UINT64", 1 << 40), ("INT64", -1 << 40), ("FLOAT64", 0.1)):
            writer.add_key_value(f"some.{kind.lower()}", value, gguf.GGUFValueType[kind])
        random = np.random.default_rng(0)
        writer.add_tensor("token_embd.weight", random.normal(size=(4, 64)).astype(np.float16))
        for kind in ("Q8_0", "Q4_0"):
            kind = gguf.GGMLQuantizationType[kind]
            data = gguf.quants.quantize(random.normal(size=(3, 64)).astype(np.float32), kind)
            writer.add_tensor(f"blk.0.{kind.name}.weight", data, raw_dtype=kind)
        for each, values in tensors:
            writer.add_tensor(each, np.asarray(values, dtype=np.float32))
        writer.add_tensor("blk.0.experts.weight", random.normal(size=(2, 3, 5)).astype(np.float32))
        writer.add_tensor("output_norm.weight", random.normal(size=7).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return make


def kind_of(value):
    return gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.get_type(value)


def metadata(path):
    """The bytes of every metadata entry, in the order of the file."""
    return {
        field.name: b"".join(part.tobytes() for part in field.parts)
        for field in gguf.GGUFReader(path).fields.values()
        if not field.name.startswith("GGUF.")
    }


def tensors(path):
    return {
        tensor.name: (tensor.tensor_type.name, tensor.shape.tolist(), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def lists(path):
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name in (SHORT, LONG)}
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in found.values())
    return tuple(found[SHORT].data.tolist()), tuple(found[LONG].data.tolist())


def float32(values):
    return tuple(np.float32(values).tolist())


def said(path, name, architecture="llama"):
    return GGUFFile(path).value(f"{architecture}.{name}")


# What llama.cpp finds


def test_lists_and_keys_are_those_of_the_schedule(make_base, tmp_path):
    exported = export_gguf(make_base(), TWO, tmp_path / "out.gguf")
    assert lists(exported.path) == (float32(NEAR.lambdas), float32(LAMBDAS))
    values = [said(exported.path, name) for name in OURS]
    assert values == [2048, "longrope", 256, np.float32(1.15)]
    assert (exported.short, exported.long, exported.division) == (*TWO.windows, 256)
    types = [gguf.GGUFReader(exported.path).get_field(f"llama.{name}").types[0].name for name in OURS]
    assert types == ["UINT32", "STRING", "UINT32", "FLOAT32"]


@pytest.mark.parametrize("chunk", [16 << 20, 48])
def test_everything_else_is_byte_for_byte_the_base(make_base, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(gguf_file, "_CHUNK", chunk)
    base = make_base(**{"rope.scaling.finetuned": False, "rope.dimension_count": 16})
    before, reports = base.read_bytes(), []
    output = export_gguf(base, TWO, tmp_path / "out.gguf", report=lambda *each: reports.append(each)).path
    changed = {f"llama.{name}" for name in OURS}
    kept = {name: entry for name, entry in metadata(base).items() if name not in changed}
    assert len(kept) == 18
    assert {name: entry for name, entry in metadata(output).items() if name not in changed} == kept
    assert {name: each for name, each in tensors(output).items() if name not in (SHORT, LONG)} == tensors(base)
    assert {each[0] for each in tensors(base).values()} == {"F16", "Q8_0", "Q4_0", "F32"}
    assert output.read_bytes()[:8] == before[:8]
    assert base.read_bytes() == before
    done = [each for each, _ in reports]
    assert done == sorted(done)
    assert done[-1] == sum(len(each[2]) for each in tensors(base).values())
    assert (len(reports) > len(tensors(base))) == (chunk == 48)


def test_tensors_lie_where_llama_cpp_asks_for_them(make_base, tmp_path):
    base = make_base(tensors=[(PLAIN, [2.0] * 8)])
    reader = gguf.GGUFReader(export_gguf(base, TWO, tmp_path / "out.gguf").path)
    expected = 0
    for tensor in reader.tensors:
        assert tensor.field.parts[-1][0] == expected
        expected += -(-tensor.n_bytes // 64) * 64
    assert reader.data_offset % 64 == 0
    assert len(reader.data) == reader.data_offset + expected


STALE = {
    "rope.scaling.factor": 8.0,
    "rope.scale_linear": 8.0,
    "rope.scaling.yarn_log_multiplier": 0.1,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.3,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "rope.scaling.alpha": 2.0,
}


@pytest.mark.parametrize("kind", ["linear", "yarn", "longrope"])
def test_scaling_of_another_kind_leaves_nothing_behind(make_base, tmp_path, kind):
    keys = {**STALE, "rope.scaling.type": kind, "rope.scaling.original_context_length": 128}
    base = make_base(tensors=[(PLAIN, [2.0] * 8), (SHORT, [3.0] * 8)], **keys)
    output = export_gguf(base, TWO, tmp_path / "out.gguf").path
    assert not {f"llama.{name}" for name in STALE} & metadata(output).keys()
    assert PLAIN not in tensors(output)
    assert lists(output) == (float32(NEAR.lambdas), float32(LAMBDAS))
    assert [said(output, name) for name in OURS] == [2048, "longrope", 256, np.float32(1.15)]


@given(
    entries=st.lists(
        st.one_of(st.booleans(), st.floats(width=32, allow_nan=False), st.text(), st.binary()), max_size=4
    ),
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    alignment=st.sampled_from([None, 8, 32, 128]),
)
def test_any_file_comes_back_but_for_what_changed(tmp_path_factory, entries, sizes, alignment):
    folder = tmp_path_factory.mktemp("any")
    writer = gguf.GGUFWriter(folder / "base.gguf", "llama")
    for index, value in enumerate(entries):
        kind = gguf.GGUFValueType.STRING if isinstance(value, bytes) else kind_of(value)
        writer.add_key_value(f"key {index}", value, kind)
    writer.add_rope_dimension_count(16)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for index, size in enumerate(sizes):
        writer.add_tensor(f"tensor {index}", np.arange(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    export_gguf(folder / "base.gguf", TWO, folder / "one.gguf")
    assert metadata(folder / "base.gguf").items() <= metadata(folder / "one.gguf").items()
    assert tensors(folder / "base.gguf").items() <= tensors(folder / "one.gguf").items()
    export_gguf(folder / "one.gguf", TWO, folder / "two.gguf")
    assert (folder / "one.gguf").read_bytes() == (folder / "two.gguf").read_bytes()


# Factors of one window, on top of what the base says


@pytest.mark.parametrize(
    ("keys", "lists_of_base", "short", "division"),
    [
        ({}, [], (1.0,) * 8, 256),
        ({"context_length": 4096}, [], (1.0,) * 8, 256),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, [], (1.0,) * 8, 256),
        ({"rope.scaling.factor": 4.0, "context_length": 1024}, [], (4.0,) * 8, 1024),
        ({"rope.scale_linear": 2.0, "context_length": 512}, [], (2.0,) * 8, 512),
        ({"context_length": 1024}, [(PLAIN, NEAR.lambdas)], float32(NEAR.lambdas), 1024),
        (
            {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 256, "context_length": 512},
            [(SHORT, NEAR.lambdas), (LONG, MIDDLE.lambdas)],
            float32(NEAR.lambdas),
            256,
        ),
    ],
)
def test_the_short_list_is_what_the_base_has(make_base, tmp_path, keys, lists_of_base, short, division):
    base = make_base(tensors=lists_of_base, **keys)
    exported = export_gguf(base, FAR.replace(attention_factor=1.0), tmp_path / "out.gguf")
    assert lists(exported.path) == (short, float32(LAMBDAS))
    assert exported.division == said(exported.path, "rope.scaling.original_context_length") == division


def test_the_attention_factor_of_the_base_gives_way_and_that_is_said(make_base, tmp_path):
    losses = export_gguf(make_base(), FAR, tmp_path / "out.gguf").losses
    assert [loss for loss in losses if "attention factor" in loss] == [
        "contexts of 1 to 256 tokens get attention factor 1.1500 instead of 1.0000: llama.cpp has one for both lists"
    ]


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_a_base_whose_factors_cannot_be_told_needs_a_schedule(make_base, tmp_path, kind):
    base = make_base(**{"rope.scaling.type": kind, "rope.scaling.factor": 4.0})
    with pytest.raises(FactorsError, match=f"type '{kind}'.*give a whole schedule"):
        export_gguf(base, FAR, tmp_path / "out.gguf")


def test_factors_for_less_than_the_base_serves_are_refused(make_base, tmp_path):
    base = make_base(context_length=4096, tensors=[(PLAIN, LAMBDAS)])
    with pytest.raises(FactorsError, match="already serves contexts of 4k"):
        export_gguf(base, FAR, tmp_path / "out.gguf")


# What is lost


def test_two_windows_lose_nothing_but_the_choice_by_text(make_base, tmp_path):
    (only,) = export_gguf(make_base(), TWO, tmp_path / "out.gguf").losses
    assert "by the context it is given, not by the length of the text: above 256 every text gets the long" in only


def test_one_window_loses_nothing(make_base, tmp_path):
    exported = export_gguf(make_base(), FactorSchedule((Window(2048, FAR),)), tmp_path / "out.gguf")
    assert exported.losses == ()
    assert lists(exported.path) == (float32(LAMBDAS), float32(LAMBDAS))


@pytest.mark.parametrize(
    ("short_window", "short", "lost"),
    [
        (None, NEAR, "contexts of 257 to 512 tokens get the factors of window 2k instead of those of 512"),
        (256, NEAR, "contexts of 257 to 512 tokens get the factors of window 2k instead of those of 512"),
        (512, MIDDLE, "contexts of 1 to 256 tokens get the factors of window 512 instead of those of 256"),
        (2048, FAR, "contexts of 1 to 256 tokens get the factors of window 2k instead of those of 256"),
    ],
)
def test_the_short_window_can_be_chosen(make_base, tmp_path, short_window, short, lost):
    exported = export_gguf(make_base(), THREE, tmp_path / "out.gguf", short_window)
    assert lists(exported.path) == (float32(short.lambdas), float32(LAMBDAS))
    assert exported.division == (512 if short_window == 512 else 256)
    assert exported.losses[0].startswith(lost)


def test_a_short_window_that_is_none_is_refused(make_base, tmp_path):
    with pytest.raises(SettingsError, match="1k is not a window of the schedule; it has 256, 512, 2k"):
        export_gguf(make_base(), THREE, tmp_path / "out.gguf", 1024)


@pytest.mark.parametrize(("length", "said"), [(700, "at most 512 tokens"), (200, "so it is never used")])
def test_a_short_list_that_contexts_step_over_is_said(make_base, tmp_path, length, said):
    schedule = FactorSchedule((Window(length, NEAR), Window(2048, FAR)))
    assert export_gguf(make_base(), schedule, tmp_path / "out.gguf", length).losses[-1].endswith(said)


# n_hat

RESULTS = {"best_without_n_hat": {"lambdas": [1.5] * 8, "n_hat": 0, "attention_factor": 1.15}}


def test_n_hat_is_refused_or_replaced(make_base, tmp_path):
    schedule = TWO.with_window(FAR.replace(n_hat=4, provenance={"results": RESULTS}))
    with pytest.raises(FactorsError, match=r"n_hat = 4, which llama\.cpp cannot apply; add --without-n-hat"):
        export_gguf(make_base(), schedule, tmp_path / "out.gguf")
    exported = export_gguf(make_base(), schedule, tmp_path / "out.gguf", without_n_hat=True)
    assert lists(exported.path) == (float32(NEAR.lambdas), (1.5,) * 8)


def test_n_hat_of_the_short_list_is_refused_too(make_base, tmp_path):
    with pytest.raises(FactorsError, match=r"factors for 256 have n_hat = 8, which llama\.cpp cannot apply"):
        export_gguf(make_base(), TWO.with_window(NEAR.replace(n_hat=8)), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_n_hat_of_a_window_that_is_left_out_does_not_matter(make_base, tmp_path):
    schedule = TWO.with_window(MIDDLE.replace(n_hat=4))
    assert lists(export_gguf(make_base(), schedule, tmp_path / "out.gguf").path)[1] == float32(LAMBDAS)


# Refusals


@pytest.mark.parametrize(
    ("error", "message", "base"),
    [
        (UnsupportedModelError, "architecture 'qwen2'.*it does for llama, phi3", {"architecture": "qwen2"}),
        (FactorsError, "rope_theta 10000, the model has 500000", {"rope.freq_base": 5e5}),
        (FactorsError, "rotary_dim 16, the model rotates 32", {"rope.dimension_count": 32}),
        (FactorsError, "rotary_dim 16, the model rotates 8", {"attention.key_length": 8}),
        (FactorsError, "rotary_dim 16, the model rotates 32", {"embedding_length": 128}),
        (InvalidInputError, "one of 3 parts of a model; merge them", {"general": {"split.count": 3}}),
        (InvalidInputError, "is of type 'adapter'", {"general": {"general.type": "adapter"}}),
        (InvalidInputError, "big-endian", {"endianess": "BIG"}),
    ],
)
def test_a_base_that_does_not_fit_is_refused(make_base, tmp_path, error, message, base):
    with pytest.raises(error, match=message) as refusal:
        export_gguf(make_base(**base), TWO, tmp_path / "out.gguf")
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf"]


def test_frequencies_are_compared_as_the_file_rounds_them(make_base, tmp_path):
    odd = IDENTITY.replace(rope_theta=10000.1, lambdas=LAMBDAS, target_length=2048)
    export_gguf(make_base(**{"rope.freq_base": 10000.1}), odd, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda data: b"PK\x03\x04" + data, "is not a GGUF file; convert"),
        (lambda data: b"", "is not a GGUF file; convert"),
        (lambda data: data[:-200], "cannot be read as a GGUF file"),
        (lambda data: data[:100], "cannot be read as a GGUF file"),
        (lambda data: data[:4], "cannot be read as a GGUF file"),
        (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "version 9"),
        (lambda data: data.replace(b"llama", b"ll\xa1ma", 1), "general.architecture that is not UTF-8"),
    ],
)
def test_a_broken_base_is_refused(make_base, tmp_path, cut, message):
    base = make_base()
    base.write_bytes(cut(base.read_bytes()))
    with pytest.raises(InvalidInputError, match=message) as refusal:
        export_gguf(base, TWO, tmp_path / "out.gguf")
    assert "\n" not in str(refusal.value)


def test_a_vocabulary_only_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidInputError, match="holds no tensors"):
        export_gguf(tmp_path / "vocab.gguf", TWO, tmp_path / "out.gguf")


def test_a_missing_base_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="is not a file; give a GGUF file"):
        export_gguf(tmp_path / "none.gguf", TWO, tmp_path / "out.gguf")


def test_an_output_that_exists_is_refused(make_base, tmp_path):
    base, output = make_base(), tmp_path / "out.gguf"
    before = base.read_bytes()
    with pytest.raises(RunExistsError, match="same file"):
        export_gguf(base, TWO, base)
    output.symlink_to(base)
    with pytest.raises(RunExistsError, match="same file"):
        export_gguf(base, TWO, output)
    output.unlink()
    output.write_text("mine")
    with pytest.raises(RunExistsError, match=r"out\.gguf exists"):
        export_gguf(base, TWO, output)
    assert (base.read_bytes(), output.read_text()) == (before, "mine")


def test_an_interruption_leaves_nothing(make_base, tmp_path):
    def interrupt(done, total):
        assert len(list(tmp_path.iterdir())) == 2, "the copy should be under way"
        raise KeyboardInterrupt

    base = make_base()
    with pytest.raises(KeyboardInterrupt):
        export_gguf(base, TWO, tmp_path / "out.gguf", report=interrupt)
    assert list(tmp_path.iterdir()) == [base]


def test_a_missing_package_is_named(make_base, tmp_path, monkeypatch):
    base = make_base()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SettingsError, match=r'run `pip install "longrope\[gguf\]"`'):
        export_gguf(base, TWO, tmp_path / "out.gguf")


# The command


def test_the_command_writes_and_says_what_is_lost(make_base, tmp_path, monkeypatch, capsys):
    THREE.save(tmp_path / "longrope.json")
    output = tmp_path / "new" / "out.gguf"
    arguments = ["--base", make_base(), "--factors", tmp_path / "longrope.json", "--output", output]
    monkeypatch.setattr("sys.argv", ["longrope", "export", "gguf", *map(str, arguments), "--short-window", "512"])
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code in (0, None)
    assert lines[0] == f"{output}: short list of window 512, long list of window 2k, attention factor 1.1500"
    assert lines[1].startswith("note: contexts of 1 to 256 tokens")
    assert lines[-1] == f"serve: llama-server -m {output} -c 2048"
    assert lists(output) == (float32(MIDDLE.lambdas), float32(LAMBDAS))
