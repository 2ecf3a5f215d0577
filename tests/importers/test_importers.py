"""Published factors: tables and configs become the factors that transformers computes from them."""

import csv
import hashlib
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope.exceptions import FactorsError, SettingsError, UnsupportedModelError
from longrope.export.huggingface import set_longrope
from longrope.importers.config import find_config, import_config, read_config_rope
from longrope.importers.table import import_table, read_table
from longrope.model.rope_config import read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window, load_factors

SHORT = [1.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5]
LONG = [1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1]
LISTS = {"short_factor": SHORT, "long_factor": LONG}
SU = math.sqrt(1 + math.log(4) / math.log(64))
PLAIN = RopeFactors.identity(1e4, 16, 64)
LLAMA2 = RopeFactors.identity(1e4, 128, 4096)


def write_table(folder, rows, name="table.csv"):
    path = folder / name
    path.write_text("".join(",".join(map(repr, row)) + "\n" for row in rows))
    return path


def published(pairs=64, layers=32, largest=512.0):
    """A table like those of microsoft/LongRoPE: float32 numbers in decimal, the same row for every layer."""
    exact = np.random.default_rng(3).uniform(1, largest, pairs)
    row = [float(value) for value in np.sort(exact).astype(np.float32)]
    return [row] * layers


# Tables


def test_a_published_table_gives_transformers_its_frequencies(tmp_path):
    """For a config like that of LLaMA2-7B: 1 / (f_i theta^(2i/d)), here computed in float64 from the file itself."""
    path = write_table(tmp_path, published())
    imported = import_table(path, LLAMA2, 2097152)
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=4096)
    assert set_longrope(config, read_rope(config).extended_by(imported.factors)) != ()
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config, device=None, seq_len=4097)
    with path.open() as stream:
        factors = np.array([float(cell) for cell in next(csv.reader(stream))])
    expected = 1 / (factors * 10000.0 ** (np.arange(0, 128, 2) / 128))
    np.testing.assert_allclose(inv_freq.double().numpy(), expected, rtol=1e-6)
    assert attention_factor == pytest.approx(math.sqrt(1 + math.log(512) / math.log(4096)), rel=1e-12)


@given(
    st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=70),
    st.integers(1, 4),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.sampled_from([",", ", "]),
    st.booleans(),
)
def test_tables_come_back_as_they_were_written(tmp_path_factory, row, rows, newline, comma, marked):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    line = comma.join(map(repr, row))
    path.write_bytes((("\ufeff" if marked else "") + newline.join([line] * rows)).encode())
    table = read_table(path)
    assert (table.lambdas, table.rows) == (tuple(row), rows)


def test_what_a_table_does_not_say(tmp_path):
    path = write_table(tmp_path, [LONG])
    factors = import_table(path, PLAIN, 256).factors
    assert factors == PLAIN.replace(lambdas=tuple(LONG), target_length=256, attention_factor=SU)
    for rule, value in (("yarn", 0.1 * math.log(4) + 1), ("none", 1), ("1.25", 1.25), (1.5, 1.5), ("present", 1.1)):
        chosen = import_table(path, PLAIN, 256, rule, n_hat=8, present=1.1).factors
        assert (chosen.attention_factor, chosen.n_hat) == (pytest.approx(value), 8)
    with pytest.raises(SettingsError, match="attention factor 'ntk' is unknown"):
        import_table(path, PLAIN, 256, "ntk")


def test_provenance_names_the_file(tmp_path):
    path = write_table(tmp_path, [LONG] * 3)
    imported = import_table(path, PLAIN, 256)
    provenance = imported.factors.provenance
    assert (provenance["method"], provenance["source"]) == ("imported", "table.csv")
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["form"] == imported.description == "table of 3 equal rows"
    assert imported.notes == (f"attention factor {SU:.6g} (su); a table does not name one",)
    imported.factors.save(tmp_path / "factors.json")
    assert load_factors(tmp_path / "factors.json").provenance == provenance


def test_a_table_that_falls_is_read_with_a_warning(tmp_path):
    path = write_table(tmp_path, [[1.0, 2.0, 2.0, 1.5, 3.0, 2.9, 4.0, 4.0]])
    with pytest.warns(UserWarning, match=r"^table\.csv: the lambdas are not monotone \(lambda 3 is the first below"):
        factors = import_table(path, PLAIN, 256).factors
    assert factors.lambdas[3] == 1.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty; give one row"),
        ("\n\n", "is empty; give one row"),
        ("1,2,3,4,5,6,7\n", r"7 columns, but the model rotates 16 dimensions of a head and needs 8"),
        ("1,2,x,4,5,6,7,8\n", r"row 1, column 3 holds 'x'; expected a number above 0"),
        ("1,2,3,4,5,6,7,\n", r"row 1, column 8 holds ''; expected a number above 0"),
        ("1,2,3,4,nan,6,7,8\n", r"row 1, column 5 holds nan; expected a finite number above 0"),
        ("1,2,3,4,inf,6,7,8\n", r"row 1, column 5 holds inf; expected a finite number"),
        ("0,2,3,4,5,6,7,8\n", r"row 1, column 1 holds 0; expected a finite number above 0"),
        ("1,2,3,4,5,6,7,-8\n", r"row 1, column 8 holds -8; expected a finite number above 0"),
        ("1,2,3,4,5,6,7,8\n" * 2 + "1,2,3,4,5,6,7,9\n", r"row 3, column 8 holds 9 and the first row 8"),
        ("1,2,3,4,5,6,7,8\n1,2,3\n", r"row 2 has 3 columns, the first row 8"),
        ("1,2,3,4,5,6,7,8\n\n1,2,3,4,5,6,7,8\n1,2,3,4,5,6,7,q\n", r"row 4, column 8 holds 'q'"),
        (b"\xff\xfe\x00", "is not a CSV file in UTF-8"),
        ('1,"2', "is not a CSV file in UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, said):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FactorsError, match=said) as refusal:
        import_table(path, PLAIN, 256)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FactorsError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.csv")


# Configs


def write_config(folder, model_type="llama", **settings):
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            {
                "model_type": model_type,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_hidden_layers": 2,
                "max_position_embeddings": 256,
                **settings,
            }
        )
    )
    return path


def spelled(version, kind, values, key="rope_type"):
    """The same RoPE as transformers 4 or 5 writes it."""
    if version == 4:
        return {"rope_theta": 1e4, "rope_scaling": {key: kind, **values}}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **values}}


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
FIXED = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": LLAMA3,
}


@pytest.mark.parametrize(("version", "key"), [(4, "type"), (4, "rope_type"), (5, "rope_type")])
@pytest.mark.parametrize("kind", FIXED)
def test_one_set_of_factors(tmp_path, kind, version, key):
    path = write_config(tmp_path, **spelled(version, kind, FIXED[kind], key))
    imported = import_config(path, "a model")
    factors = imported.factors
    assert (factors.original_length, factors.target_length, factors.n_hat) == (64, 256, 0)
    config = AutoConfig.from_pretrained(tmp_path)
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, device=None)
    np.testing.assert_allclose(factors.inv_freq(), inv_freq.double().numpy(), rtol=5e-7)
    assert factors.attention_factor == pytest.approx(attention_factor, rel=1e-12)
    assert (imported.description, len(imported.notes)) == (f"config of rope type {kind}", int(kind == "linear"))
    assert factors.provenance["source"] == "a model"
    assert factors.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [window.max_length for window in imported.windows] == [256]


def two_windows(attention_factors=(SU, SU), lists=(SHORT, LONG)):
    return FactorSchedule(
        tuple(
            Window(
                length, PLAIN.replace(lambdas=tuple(values), target_length=length, attention_factor=attention_factor)
            )
            for length, values, attention_factor in zip((64, 256), lists, attention_factors, strict=True)
        )
    )


def assert_same(schedule, expected):
    assert schedule.describe() == expected.describe()
    for window, other in zip(schedule.windows, expected.windows, strict=True):
        assert window.factors.lambdas == other.factors.lambdas
        assert window.factors.attention_factor == pytest.approx(other.factors.attention_factor, rel=1e-12)
        assert window.factors.rope_theta == other.factors.rope_theta
        assert window.factors.original_length == other.factors.original_length


NESTED = {"original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", spelled(5, "longrope", {**LISTS, **NESTED})),
        ("llama", {**spelled(5, "longrope", LISTS), **NESTED}),
        ("llama", spelled(4, "longrope", {**LISTS, **NESTED})),
        ("qwen2", {**spelled(4, "longrope", LISTS, "type"), **NESTED}),
        ("llama", {**spelled(4, "su", LISTS, "type"), **NESTED}),
        ("llama", spelled(4, "su", {**LISTS, **NESTED}, "type")),
        ("phi3", {**spelled(4, "su", LISTS, "type"), **NESTED}),  # Phi-3-mini-128k as first published
        ("phi3", {**spelled(4, "yarn", LISTS, "type"), **NESTED}),
        ("phi3", spelled(4, "longrope", {**LISTS, **NESTED}, "type")),
        ("phi3", spelled(5, "longrope", {**LISTS, **NESTED})),
        ("minicpm", spelled(4, "longrope", {**LISTS, **NESTED})),  # of no class in transformers
    ],
)
def test_two_lists_become_a_schedule(tmp_path, model_type, settings):
    path = write_config(tmp_path, model_type, **settings)
    imported = import_config(path, "a model")
    assert_same(imported.factors, two_windows())
    assert imported.description == "config of rope type longrope"
    assert imported.notes == (
        ("model type 'minicpm' is not known here; its RoPE was read from its numbers alone",)
        if model_type == "minicpm"
        else ()
    )
    for window in imported.windows:
        assert window.factors.provenance["source"] == "a model"


def test_where_two_entries_disagree_the_one_that_transformers_takes_wins(tmp_path):
    """The original length at the top level over the nested one, and the old name of the parameters over the new."""
    nested = {**LISTS, "original_max_position_embeddings": 32}
    path = write_config(tmp_path, **spelled(4, "longrope", nested), **NESTED)
    assert_same(import_config(path, "a model").factors, two_windows())
    other = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
    path = write_config(tmp_path, **spelled(4, "longrope", {**LISTS, **NESTED}), **other)
    assert_same(import_config(path, "a model").factors, two_windows())


def test_mscales_of_a_config_for_one_length(tmp_path):
    one = {"max_position_embeddings": 64, "original_max_position_embeddings": 64}
    mscales = {"short_mscale": 1.2, "long_mscale": 1.3, "factor": 1.0}
    path = write_config(tmp_path, **{**spelled(4, "longrope", {**LISTS, **mscales}), **one})
    schedule = import_config(path, "a model").factors
    assert schedule.describe() == "64"
    assert (schedule.reference.lambdas, schedule.reference.attention_factor) == (tuple(SHORT), 1.2)


def test_a_rope_for_each_layer_type(tmp_path):
    layers = {
        "full_attention": spelled(5, "su", {**LISTS, **NESTED})["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
    path = write_config(tmp_path, "gemma3_text", head_dim=16, rope_parameters=layers)
    assert_same(import_config(path, "a model").factors, two_windows())


def test_partial_rotary(tmp_path):
    lists = {"short_factor": SHORT[:4], "long_factor": LONG[:4]}
    path = write_config(tmp_path, "phi3", **spelled(4, "longrope", lists), **NESTED, partial_rotary_factor=0.5)
    factors = import_config(path, "a model").factors.reference
    assert (factors.rotary_dim, factors.lambdas) == (8, tuple(LONG[:4]))


@pytest.mark.parametrize(
    ("model_type", "scales", "note"),
    [
        ("phimoe", (1.2, 1.3), "attention factors 1.2 and 1.3 are the config's short_mscale and long_mscale"),
        (
            "llama",
            (1.2, 1.3),
            "attention factors 1.2 and 1.3 are the config's short_mscale and long_mscale; plain transformers applies "
            f"{SU:.6g} to both lists",
        ),
        ("llama", (SU, SU), f"attention factors {SU:.6g} and {SU:.6g} are the config's short_mscale and long_mscale"),
    ],
)
def test_an_attention_factor_for_each_list(tmp_path, model_type, scales, note):
    mscales = {"short_mscale": scales[0], "long_mscale": scales[1]}
    path = write_config(tmp_path, model_type, **spelled(4, "longrope", {**LISTS, **mscales}, "type"), **NESTED)
    imported = import_config(path, "a model")
    assert_same(imported.factors, two_windows(scales))
    assert imported.notes[-1] == note
    assert (len(imported.notes) == 2) == (model_type == "phimoe")


@pytest.mark.parametrize(
    ("given", "attention_factor", "notes"),
    [
        ({"attention_factor": 1.4}, 1.4, 0),
        ({"factor": 4.0}, SU, 0),
        ({"factor": 2.0}, math.sqrt(1 + math.log(2) / math.log(64)), 1),
        ({"factor": 2.0, "attention_factor": 1.4}, 1.4, 0),
    ],
)
def test_the_attention_factor_is_that_of_transformers(tmp_path, given, attention_factor, notes):
    path = write_config(tmp_path, **spelled(4, "longrope", {**LISTS, **NESTED, **given}))
    imported = import_config(path, "a model")
    assert_same(imported.factors, two_windows((attention_factor, attention_factor)))
    assert len(imported.notes) == notes
    assert all("ratio 4, which transformers 4 takes" in note for note in imported.notes)


def test_dynamic_is_taken_at_a_length(tmp_path):
    path = write_config(tmp_path, **spelled(4, "dynamic", {"factor": 2.0}, "type"))
    imported = import_config(path, "a model", 1000)
    config = AutoConfig.from_pretrained(tmp_path)
    inv_freq, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, device=None, seq_len=1000)
    np.testing.assert_allclose(imported.factors.inv_freq(), inv_freq.double().numpy(), rtol=5e-7)
    assert imported.factors.target_length == 1000
    assert imported.notes == ("these are the factors at 1000 tokens alone; the config gives other lengths others",)
    for length in (None, 256):
        with pytest.raises(SettingsError, match=r"a model: .* above 256; choose one by --target-length"):
            import_config(path, "a model", length)


def test_longrope_json_beside_the_config_is_named(tmp_path):
    path = write_config(tmp_path, **spelled(5, "longrope", {**LISTS, **NESTED}))
    FactorSchedule((Window(64, PLAIN),)).save(tmp_path / "longrope.json")
    imported = import_config(path, "a model")
    assert imported.factors.describe() == "64, 256"
    assert imported.notes == ("longrope.json beside the config was not read; it holds the whole schedule already",)


def test_lists_that_fall_are_read_with_a_warning(tmp_path):
    lists = {**LISTS, "short_factor": SHORT[::-1]}
    path = write_config(tmp_path, **spelled(5, "longrope", {**lists, **NESTED}))
    with pytest.warns(UserWarning, match=r"^a model: window 64: the lambdas are not monotone \(lambda 1 is"):
        assert import_config(path, "a model").factors.windows[0].factors.lambdas == tuple(SHORT[::-1])


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"rope_theta": 1e4}, UnsupportedModelError, "a model: the config has plain RoPE, so there are no factors"),
        (spelled(4, "mystery", {"factor": 2.0}), UnsupportedModelError, "rope type 'mystery' is not understood"),
        (spelled(4, "su", NESTED), UnsupportedModelError, "rope type 'su' is not understood"),
        (spelled(4, "longrope", LISTS), UnsupportedModelError, "original_max_position_embeddings is None; rope type"),
        (spelled(4, "longrope", NESTED), UnsupportedModelError, "Missing required keys"),
        (spelled(4, "longrope", {**LISTS, "original_max_position_embeddings": "4k"}), UnsupportedModelError, "'4k'"),
        (
            spelled(4, "longrope", {**LISTS, **NESTED, "short_factor": SHORT[:5]}),
            FactorsError,
            "5 lambdas given for rotary_dim 16; it needs 8",
        ),
        ({"rope_scaling": "longrope"}, UnsupportedModelError, "the RoPE of the config is 'longrope'; expected"),
        ({"model_type": "phi3small", **spelled(4, "linear", {"factor": 2.0})}, UnsupportedModelError, "phi3small"),
        (
            {"model_type": "phi3small", "rope_scaling": {"type": "su", **LISTS, **NESTED}},
            UnsupportedModelError,
            "model type 'phi3small' is not known here and names no rope_theta",
        ),
        (
            spelled(4, "longrope", {**LISTS, **NESTED}) | {"rope_theta": "big"},
            UnsupportedModelError,
            "cannot be used: could not convert",
        ),
        ({"num_attention_heads": 0, **spelled(4, "linear", {"factor": 2.0})}, UnsupportedModelError, "cannot be used"),
        ({"model_type": "gpt2"}, UnsupportedModelError, "no rotary position embedding"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_configs_that_cannot_be_used(tmp_path, settings, error, said):
    path = write_config(tmp_path, **settings)
    with pytest.raises(error, match=said) as refusal:
        import_config(path, "a model")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is not valid JSON"), ("[]", "is no Hugging Face config"), ("{}", "is no Hugging Face config")],
)
def test_files_that_are_no_configs(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match=said):
        read_config_rope(tmp_path / "config.json")


def test_what_a_linear_factor_leaves_open_is_said(tmp_path):
    """Some configs count max_position_embeddings after the scaling, as transformers does, and some before."""
    path = write_config(tmp_path, **spelled(4, "linear", {"factor": 4.0}))
    imported = import_config(path, "a model")
    assert imported.factors.original_length == 64
    assert "names no original length; 64 is its max_position_embeddings, 256, over its factor" in imported.notes[0]
    path = write_config(tmp_path, original_max_position_embeddings=256, **spelled(4, "linear", {"factor": 4.0}))
    imported = import_config(path, "a model")
    assert (imported.factors.original_length, imported.factors.target_length, imported.notes) == (256, 1024, ())


def test_a_config_says_its_own_length(tmp_path):
    path = write_config(tmp_path, **spelled(5, "yarn", FIXED["yarn"]))
    with pytest.raises(SettingsError, match="the config says the target length, 256; leave out --target-length"):
        import_config(path, "a model", 256)


def test_where_a_config_is_looked_for(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"holds no config\.json"):
        find_config(str(tmp_path))
    path = write_config(tmp_path)
    assert find_config(str(tmp_path)) == find_config(str(path)) == path
    for name in ("./none", "none.csv", "a/b/c", "folder/none.json"):
        with pytest.raises(UnsupportedModelError, match="does not exist; give a file, a model folder or a hub id"):
            find_config(name)
    with pytest.raises(UnsupportedModelError, match="'nobody/nothing' is neither a file or folder nor a model on"):
        find_config("nobody/nothing")


def test_import_and_export_are_inverse(tmp_path):
    """What our export writes comes back, two attention factors included where the config keeps them."""
    schedule = two_windows((1.15, 1.15))
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=64)
    set_longrope(config, schedule)
    config.save_pretrained(tmp_path)
    assert import_config(tmp_path / "config.json", "a model").factors == schedule


def test_importing_changes_nothing_and_says_nothing(tmp_path, capsys, caplog):
    path = write_config(
        tmp_path, "phi3", **spelled(4, "su", {**LISTS, "short_mscale": 1.2, "long_mscale": 1.3}, "type"), **NESTED
    )
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_config(path, "a model")
    assert path.read_bytes() == before
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
