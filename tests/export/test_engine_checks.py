"""What engines do with exported folders. Their rules are written down here a second time, from their own sources."""

import json
import math
from itertools import pairwise

import pytest
import torch
from tiny_models import rotary_dim
from transformers import AutoModelForCausalLM

from longrope.exceptions import FactorsError, InvalidInputError, SettingsError, UnsupportedModelError
from longrope.export.engines.check import ENGINES, check
from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

PLAIN = RopeFactors.identity(1e4, 16, 64)
FAR_LAMBDAS = (1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1)
SU = math.sqrt(1 + math.log(256 / 64) / math.log(64))
FAR = PLAIN.replace(lambdas=FAR_LAMBDAS, target_length=256, attention_factor=SU)
NEAR = PLAIN.replace(lambdas=tuple(1 + (each - 1) / 4 for each in FAR_LAMBDAS), attention_factor=SU)
NEARER = PLAIN.replace(lambdas=tuple(1 + (each - 1) / 9 for each in FAR_LAMBDAS), attention_factor=SU)

ONE_LIST = FactorSchedule((Window(256, FAR),))
TWO_LISTS = FactorSchedule((Window(64, NEAR), Window(256, FAR)))
THREE_WINDOWS = FactorSchedule((Window(32, NEARER), Window(64, NEAR), Window(256, FAR)))


def scaled(schedule, *attention_factors):
    """The same windows with other attention factors, one each or one for all."""
    values = attention_factors * (len(schedule.windows) if len(attention_factors) == 1 else 1)
    return FactorSchedule(
        tuple(
            Window(window.max_length, window.factors.replace(attention_factor=value))
            for window, value in zip(schedule.windows, values, strict=True)
        )
    )


def for_model(schedule, model_type):
    """Factors for half as many pairs where only half of a head turns."""
    dim = rotary_dim(model_type)
    return FactorSchedule(
        tuple(
            Window(
                window.max_length,
                window.factors.replace(lambdas=window.factors.lambdas[: dim // 2], rotary_dim=dim),
            )
            for window in schedule.windows
        )
    )


@pytest.fixture
def export(make_tiny_model, tiny_tokenizer, tmp_path):
    """Exports a random model with a schedule; gives the folder."""

    def make(schedule, model_type="llama", mscales=None, **options):
        model = tmp_path / "model" / model_type
        if not model.exists():
            make_tiny_model(model_type).save_pretrained(model)
            tiny_tokenizer.save_pretrained(model)
        folder = tmp_path / f"exported-{len(list(tmp_path.iterdir()))}"
        export_folder(ModelSource(str(model)), for_model(schedule, model_type), folder, **options)
        if mscales is not None:
            edit(folder, lambda parameters: set_mscales(parameters, mscales))
        return folder

    return make


def set_mscales(parameters, values):
    """Both or neither, whatever the export thought best."""
    for name in ("short_mscale", "long_mscale"):
        parameters.pop(name, None)
    parameters.update(zip(("short_mscale", "long_mscale"), values, strict=False))


def edit(folder, change, name="config.json"):
    """Change the rope parameters of a folder's config."""
    config = json.loads((folder / name).read_text())
    change(config.get("rope_parameters", config.get("rope_scaling")))
    (folder / name).write_text(json.dumps(config))


def rows(report):
    """(first, last, window, list, attention factor, same) of every row."""
    return [
        (
            row.first,
            row.last,
            row.window.max_length,
            row.used.name,
            None if row.used.attention_factor is None else round(row.used.attention_factor, 5),
            row.same,
        )
        for row in report.rows
    ]


R = round(SU, 5)


# transformers


@pytest.mark.parametrize("config_format", ["v5", "v4"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3"])
def test_hf_serves_two_lists_with_one_attention_factor(export, model_type, config_format):
    report = check(export(TWO_LISTS, model_type, config_format=config_format), "hf")
    assert rows(report) == [(1, 64, 64, "short", R, True), (65, 256, 256, "long", R, True)]
    assert report.ignored == ()
    assert report.reference == "longrope.json"
    recomputes = model_type == "phi3"
    assert ("recomputes its cache once" in report.service.crossing) == recomputes
    assert any("goes on with keys of the other list" in line for line in report.service.mismatches) != recomputes
    assert report.same == recomputes


def test_hf_up_to_the_original_length_has_nothing_to_cross(export):
    report = check(export(TWO_LISTS), "hf", 64)
    assert rows(report) == [(1, 64, 64, "short", R, True)]
    assert report.same


def test_hf_is_asked_itself(export, tmp_path):
    """Frequencies and attention factor are those of the model that transformers loads, whatever the JSON says."""
    folder = export(scaled(TWO_LISTS, 1.15))
    report = check(folder, "hf")
    rotary = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb
    for row in report.rows:
        cos, _ = rotary(torch.zeros(1, 1), torch.arange(row.last)[None])
        lambdas = (1e4 ** (-torch.arange(0, 16, 2) / 16)) / rotary.inv_freq
        torch.testing.assert_close(torch.tensor(row.used.lambdas), lambdas, rtol=1e-5, atol=0)
        assert row.used.attention_factor == pytest.approx(float(cos[0, 0, 0]), rel=1e-6)


def test_hf_with_equal_lists_has_nothing_to_cross(export):
    report = check(export(ONE_LIST), "hf")
    assert report.same
    assert report.service.crossing == "never: both lists are the same"
    report = check(export(TWO_LISTS, single_list=True), "hf")
    assert (report.same, report.ignored) == (True, ())
    assert check(export(TWO_LISTS, single_list=True), "vllm").same


@pytest.mark.parametrize(
    ("schedule", "expected", "ignored"),
    [
        (
            THREE_WINDOWS,
            [(1, 32, 32, "short", R, False), (33, 64, 64, "short", R, True), (65, 256, 256, "long", R, True)],
            ("the factors of window 32",),
        ),
        (
            scaled(TWO_LISTS, 1.0, 1.15),
            [(1, 64, 64, "short", 1.15, False), (65, 256, 256, "long", 1.15, True)],
            (),
        ),
    ],
)
def test_hf_has_two_lists_and_one_attention_factor(export, schedule, expected, ignored):
    report = check(export(schedule), "hf")
    assert rows(report) == expected
    assert report.ignored == ignored
    assert not report.same


def with_n_hat(schedule, n_hat):
    *others, last = schedule.windows
    return FactorSchedule((*others, Window(last.max_length, last.factors.replace(n_hat=n_hat))))


@pytest.mark.parametrize("engine", ["hf", "vllm", "sglang", "exllama"])
def test_n_hat_is_ignored(export, engine):
    folder = export(ONE_LIST)
    assert check(folder, engine).same
    with_n_hat(ONE_LIST, 8).save(folder / "longrope.json")
    report = check(folder, engine)
    assert not report.same
    assert report.ignored == ("n_hat 8 of window 256: start tokens are rescaled like all others",)
    assert all(row.used.turns_like(FAR) and not row.same_factors for row in report.rows)


def test_n_hat_of_plain_factors_is_nothing(export):
    folder = export(FactorSchedule((Window(64, PLAIN), Window(256, FAR))))
    FactorSchedule((Window(64, PLAIN.replace(n_hat=8)), Window(256, FAR))).save(folder / "longrope.json")
    report = check(folder, "hf")
    assert report.rows[0].same_factors
    assert not report.rows[0].same_attention_factor


def test_hf_runs_the_code_of_a_folder_on_request(export):
    schedule = with_n_hat(scaled(THREE_WINDOWS, 1.0, 1.05, 1.15), 8)
    report = check(export(schedule, code=True), "hf")
    assert report.same
    assert [(row.first, row.last, row.used.name) for row in report.rows] == [
        (1, 32, "window 32"),
        (33, 64, "window 64"),
        (65, 256, "window 256"),
    ]
    assert "trust_remote_code=True" in report.service.serve_with[0]
    assert "recomputes its cache once" in report.service.crossing


def test_hf_with_code_for_other_factors_is_noticed(export):
    folder = export(TWO_LISTS, code=True)
    scaled(TWO_LISTS, 1.3).save(folder / "longrope.json")
    assert not check(folder, "hf").same


def test_hf_asks_the_global_layers_of_gemma3(export):
    report = check(export(TWO_LISTS, "gemma3_text"), "hf")
    assert rows(report) == [(1, 64, 64, "short", R, True), (65, 256, 256, "long", R, True)]


def test_hf_rescales_all_layers_of_gemma2(export):
    report = check(export(TWO_LISTS, "gemma2"), "hf")
    assert all(row.same for row in report.rows)
    assert not report.same
    assert any("sliding window are rescaled like the others" in line for line in report.service.mismatches)
    assert check(export(TWO_LISTS, "gemma2", code=True), "hf").same


def test_other_factors_in_the_config_are_noticed(export):
    folder = export(TWO_LISTS)
    edit(folder, lambda parameters: parameters["long_factor"].__setitem__(3, 2.001))
    assert [row.same for row in check(folder, "hf").rows] == [True, False]


def test_a_config_without_factors_is_noticed(export):
    folder = export(TWO_LISTS)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config))
    report = check(folder, "hf")
    assert rows(report) == [
        (1, 64, 64, "none (rope type default)", 1.0, False),
        (65, 256, 256, "none (rope type default)", 1.0, False),
    ]
    for engine in ("vllm", "sglang", "exllama", "mlx"):
        report = check(folder, engine)
        assert not report.same
        assert "the config has rope type 'default'" in report.service.mismatches[0]


def test_lists_change_inside_a_window(export):
    folder = export(TWO_LISTS)
    ONE_LIST.save(folder / "longrope.json")
    expected = [(1, 64, 256, "short", R, False), (65, 256, 256, "long", R, True)]
    assert rows(check(folder, "hf")) == expected


def test_factors_of_one_window_stand_on_those_of_the_folder(export, tmp_path):
    folder = export(scaled(TWO_LISTS, 1.15))
    far = scaled(TWO_LISTS, 1.15).windows[-1].factors
    far.save(tmp_path / "far.json")
    report = check(folder, "hf", factors=tmp_path / "far.json")
    assert rows(report) == [(1, 64, 64, "short", 1.15, True), (65, 256, 256, "long", 1.15, True)]
    assert report.reference == "the factors given"


def test_factors_of_another_model_are_no_reference(export, tmp_path):
    scaled(TWO_LISTS, 1.15).windows[-1].factors.replace(rope_theta=5e5).save(tmp_path / "other.json")
    with pytest.raises(FactorsError, match="rope_theta"):
        check(export(TWO_LISTS), "hf", factors=tmp_path / "other.json")


def test_without_a_schedule_transformers_is_the_reference(export):
    folder = export(scaled(TWO_LISTS, 1.15))
    (folder / "longrope.json").unlink()
    report = check(folder, "hf")
    assert all(row.same for row in report.rows)
    assert report.reference == "config.json as transformers reads it"
    assert not check(folder, "vllm").same


def test_the_factors_measured_may_lie_elsewhere(export, tmp_path):
    folder = export(TWO_LISTS)
    scaled(TWO_LISTS, 1.3).save(tmp_path / "measured.json")
    report = check(folder, "hf", factors=tmp_path / "measured.json")
    assert [row.same_attention_factor for row in report.rows] == [False, False]
    assert report.reference == "the factors given"
    FAR.save(tmp_path / "factors.json")
    assert [row.window.max_length for row in check(folder, "hf", factors=tmp_path / "factors.json").rows] == [64, 256]


# vLLM


def vllm_rule(schedule, max_model_len, mscales):
    """Phi3LongRoPEScaledRotaryEmbedding: the long list for a server above the original length."""
    short, long = (schedule.factors_for(64), schedule.factors_for(256))
    name, factors, index = ("long", long, 1) if max_model_len > 64 else ("short", short, 0)
    return name, factors.lambdas, mscales[index] if mscales else math.sqrt(1 + math.log(256 / 64) / math.log(64))


@pytest.mark.parametrize("max_length", [256, 65, 64, 40])
@pytest.mark.parametrize("mscales", [(), (1.05, 1.15)])
@pytest.mark.parametrize("schedule", [ONE_LIST, TWO_LISTS, scaled(TWO_LISTS, 1.05, 1.15)])
def test_vllm_has_one_list_for_the_server(export, schedule, mscales, max_length):
    report = check(export(schedule, mscales=mscales), "vllm", max_length)
    name, lambdas, scale = vllm_rule(schedule, max_length, mscales)
    assert report.rows[-1].last == max_length
    for row in report.rows:
        assert (row.used.name, row.used.lambdas) == (name, lambdas)
        assert row.used.attention_factor == pytest.approx(scale)
        expected = schedule.factors_for(row.last)
        same = lambdas == expected.lambdas and math.isclose(scale, expected.attention_factor)
        assert row.same == same
    assert f"--max-model-len {max_length}" in report.service.serve_with[0]
    assert "without --max-model-len the server takes 64 tokens and uses the short list" in report.service.notes


def test_vllm_serves_one_list(export):
    report = check(export(ONE_LIST), "vllm")
    assert rows(report) == [(1, 256, 256, "long", R, True)]
    assert report.same
    assert report.ignored == ()


def test_vllm_gives_short_prompts_the_long_list(export):
    report = check(export(TWO_LISTS), "vllm")
    assert rows(report) == [(1, 64, 64, "long", R, False), (65, 256, 256, "long", R, True)]
    assert report.ignored == ("the factors of window 64",)
    assert check(export(TWO_LISTS), "vllm", 64).same


def test_vllm_knows_attention_factors_by_its_own_names_only(export):
    schedule = scaled(ONE_LIST, 1.15)
    report = check(export(schedule, mscales=()), "vllm")
    assert rows(report) == [(1, 256, 256, "long", R, False)]
    [line] = report.ignored
    assert line.startswith("attention_factor 1.15 of the config; short_mscale and long_mscale")
    report = check(export(schedule, mscales=(1.15, 1.15)), "vllm")
    assert report.same
    assert report.ignored == ()


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("glm4", "vLLM raises an error for rope type longrope in 'glm4': its pairs are interleaved"),
        ("gpt_neox", "vLLM is not known to apply rope type longrope to model type 'gpt_neox'"),
    ],
)
def test_vllm_does_not_know_every_model(export, model_type, said):
    report = check(export(ONE_LIST, model_type), "vllm")
    assert report.service.mismatches == (said,)
    assert rows(report) == [(1, 256, 256, "none", None, False)]
    assert report.service.serve_with == ()
    assert report.ignored == ()


@pytest.mark.parametrize("model_type", ["qwen3", "phi3", "gemma3_text"])
@pytest.mark.parametrize("config_format", ["v5", "v4"])
def test_vllm_reads_both_spellings(export, model_type, config_format):
    assert check(export(ONE_LIST, model_type, config_format=config_format), "vllm").same


def test_vllm_goes_no_further_than_config_and_tokenizer(export):
    folder = export(ONE_LIST)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 128}))
    report = check(folder, "vllm")
    assert report.service.mismatches == (
        "vLLM refuses --max-model-len 256: model_max_length in tokenizer_config.json is 128",
    )
    assert not report.same
    assert check(folder, "vllm", 128).same


# SGLang


def sglang_rule(length):
    """Phi3LongRoPEScaledRotaryEmbedding there: any position above the original length, positions 0 to length - 1."""
    return "long" if any(position > 64 for position in range(length)) else "short"


def test_sglang_decides_by_the_positions_of_a_batch(export):
    report = check(export(TWO_LISTS), "sglang")
    for row in report.rows:
        assert {sglang_rule(length) for length in range(row.first, row.last + 1)} == {row.used.name}
    assert rows(report) == [
        (1, 64, 64, "short", R, True),
        (65, 65, 256, "short", R, False),
        (66, 256, 256, "long", R, True),
    ]
    assert not report.same
    assert "the cache is kept" in report.service.crossing
    assert "--chunked-prefill-size -1 --disable-radix-cache" in report.service.serve_with[0]


def test_sglang_serves_one_list(export):
    report = check(export(ONE_LIST), "sglang")
    assert report.same
    assert "--disable-radix-cache" not in report.service.serve_with[0]
    assert report.service.notes[0].startswith("the token at position 64 turns by angle 0")
    assert check(export(TWO_LISTS), "sglang", 64).same


def test_sglang_knows_attention_factors_by_its_own_names_only(export):
    schedule = scaled(ONE_LIST, 1.15)
    assert not check(export(schedule, mscales=()), "sglang").same
    assert check(export(schedule, mscales=(1.15, 1.15)), "sglang").same
    assert not check(export(schedule, mscales=(1.1, 1.15)), "sglang").same


@pytest.mark.parametrize(
    ("model_type", "said"),
    [("mixtral", "not known to apply"), ("glm4", "raises an error"), ("phi3", "where only a part of each head turns")],
)
def test_sglang_does_not_know_every_model(export, model_type, said):
    report = check(export(ONE_LIST, model_type), "sglang")
    assert said in report.service.mismatches[0]
    assert not report.same


# exllamav3


@pytest.mark.parametrize(
    ("model_type", "max_length", "name"),
    [("llama", 256, "long"), ("llama", 64, "long"), ("phi3", 256, "long"), ("phi3", 64, "short"), ("phi3", 65, "long")],
)
def test_exllama_chooses_when_it_loads(export, model_type, max_length, name):
    report = check(export(TWO_LISTS, model_type), "exllama", max_length)
    assert {row.used.name for row in report.rows} == {name}
    assert {round(row.used.attention_factor, 5) for row in report.rows} == {R}
    assert report.same == (name == "short")


def test_exllama_has_its_own_attention_factor(export):
    assert check(export(ONE_LIST), "exllama").same
    report = check(export(scaled(ONE_LIST, 1.15), mscales=(1.15, 1.15)), "exllama")
    assert rows(report) == [(1, 256, 256, "long", R, False)]
    assert report.ignored == ("attention_factor 1.15 of the config",)


def test_exllama_does_not_look_into_layer_types(export):
    report = check(export(ONE_LIST, "gemma3_text"), "exllama")
    assert report.service.mismatches == (
        "exllamav3 is not known to apply rope type longrope to model type 'gemma3_text'",
    )


# mlx-lm


@pytest.mark.parametrize("model_type", ["llama", "phi3", "qwen3"])
def test_mlx_reads_the_spelling_of_transformers_4(export, model_type):
    report = check(export(ONE_LIST, model_type), "mlx")
    assert not report.same
    assert (
        "mlx-lm reads rope_scaling, so that it gets no factors; export with --config-format v4"
        in (report.service.mismatches[0])
    )
    if model_type == "phi3":  # it takes the rotated part from the top of the config, where v4 has it
        assert check(export(ONE_LIST, model_type, config_format="v4"), "mlx").same
    else:
        report = check(export(ONE_LIST, model_type, config_format="v4"), "mlx")
        assert rows(report) == [(1, 256, 256, "long", R, True)]
        assert report.same


def test_mlx_has_the_long_list_only(export):
    report = check(export(TWO_LISTS, config_format="v4"), "mlx", 64)
    assert rows(report) == [(1, 64, 64, "long", R, False)]
    assert report.ignored == ("the factors of window 64",)


def test_mlx_has_its_own_attention_factor(export):
    report = check(export(scaled(ONE_LIST, 1.15), config_format="v4", mscales=(1.15, 1.15)), "mlx")
    assert rows(report) == [(1, 256, 256, "long", R, False)]
    assert report.ignored == (
        "attention_factor 1.15 of the config",
        "short_mscale of the config",
        "long_mscale of the config",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["rope_scaling"].update(type="su"), 'the rope type as "longrope" only'),
        (
            lambda config: config["rope_scaling"].pop("original_max_position_embeddings"),
            "reads original_max_position_embeddings in rope_scaling",
        ),
    ],
)
def test_mlx_is_particular(export, change, said):
    folder = export(ONE_LIST, config_format="v4")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    report = check(folder, "mlx")
    assert not report.same
    assert said in report.service.mismatches[0]


# llama.cpp


@pytest.fixture
def write_gguf(tmp_path):
    """Writes a file with the metadata and factor tensors of an export, any of which a test may change."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")

    def write(architecture="llama", original=1024, tensors=("long", "short"), **metadata):
        path = tmp_path / f"model-{len(list(tmp_path.iterdir()))}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        values = {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": 1.15,
            "context_length": 4096,
            "rope.freq_base": 10000.0,
            "rope.dimension_count": 16,
            **{name.replace("__", "."): value for name, value in metadata.items()},
        }
        for name, value in values.items():
            if value is not None:
                add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
                add(f"{architecture}.{name}", value)
        writer.add_tensor("output_norm.weight", numpy.ones(4, dtype=numpy.float32))
        for name, factors in (("long", FAR), ("short", NEAR)):
            if name in tensors:
                lambdas = numpy.asarray(factors.lambdas, dtype=numpy.float32)
                writer.add_tensor(f"rope_factors_{name}.weight", lambdas)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def measured_at(tmp_path, *windows):
    """A factor file with windows of so many tokens, pretrained on 1024."""
    base = {"original_length": 1024, "attention_factor": 1.15}
    schedule = FactorSchedule(tuple(Window(length, factors.replace(**base)) for length, factors in windows))
    schedule.save(tmp_path / "measured.json")
    return tmp_path / "measured.json"


def llama_cpp_rule(context, original):
    """get_rope_factors: n_ctx_seq, a multiple of 256, above the original length."""
    return "long" if math.ceil(context / 256) * 256 > original else "short"


@pytest.mark.parametrize("original", [1024, 1000, 64])
@pytest.mark.parametrize("context", [4096, 1025, 1024, 1000, 769, 768, 64])
def test_llama_cpp_has_one_list_for_the_context(write_gguf, tmp_path, original, context):
    measured = measured_at(tmp_path, (1024, NEAR), (4096, FAR))
    report = check(write_gguf(original=original), "llama.cpp", context, measured)
    name = llama_cpp_rule(context, original)
    assert {row.used.name for row in report.rows} == {name}
    for row in report.rows:
        assert row.same == (name == ("short" if row.last <= 1024 else "long"))
    assert f" -c {context} " in report.service.serve_with[0]


def test_llama_cpp_serves_what_was_exported(write_gguf, tmp_path):
    report = check(write_gguf(), "llama.cpp", factors=measured_at(tmp_path, (4096, FAR)))
    assert rows(report) == [(1, 4096, 4096, "long", 1.15, True)]
    assert report.same
    assert "contexts of up to 1k tokens get the short list" in report.service.notes


@pytest.mark.parametrize("architecture", ["phi3", "qwen2"])
def test_llama_cpp_does_not_load_factors_for_every_architecture(write_gguf, tmp_path, architecture):
    report = check(write_gguf(architecture), "llama.cpp", factors=measured_at(tmp_path, (4096, FAR)))
    assert report.same == (architecture == "phi3")
    if architecture == "qwen2":
        assert report.service.mismatches == (
            "llama.cpp does not turn every layer of architecture 'qwen2' with factor tensors",
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensors": ()}, "there is no tensor rope_factors_long.weight, so that llama.cpp applies plain RoPE"),
        ({"tensors": ("short",)}, "there is no tensor rope_factors_long.weight"),
        ({"rope__scaling__type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"rope__scaling__type": None}, "rope.scaling.type is 'linear'"),
    ],
)
def test_llama_cpp_without_factors(write_gguf, tmp_path, changes, said):
    report = check(write_gguf(**changes), "llama.cpp", factors=measured_at(tmp_path, (4096, FAR)))
    assert not report.same
    assert said in report.service.mismatches[0]
    assert rows(report) == [(1, 4096, 4096, "none", None, False)]


@pytest.mark.parametrize("name", ["rope__scaling__factor", "rope__scale_linear"])
def test_llama_cpp_interpolates_twice(write_gguf, tmp_path, name):
    report = check(write_gguf(**{name: 4.0}), "llama.cpp", factors=measured_at(tmp_path, (4096, FAR)))
    [row] = report.rows
    assert row.used.lambdas == pytest.approx([4 * value for value in FAR_LAMBDAS])
    assert not report.same
    assert "rope.scaling.factor 4 slows all pairs down on top of the factors" in report.service.notes


def test_llama_cpp_has_the_attention_factor_of_the_file(write_gguf, tmp_path):
    measured = measured_at(tmp_path, (4096, FAR))
    for given, used in ((1.3, 1.3), (None, 1.0)):
        report = check(write_gguf(rope__scaling__attn_factor=given), "llama.cpp", factors=measured)
        assert rows(report) == [(1, 4096, 4096, "long", used, False)]


def test_llama_cpp_does_not_read_folders(export):
    report = check(export(ONE_LIST), "llama.cpp")
    assert report.service.mismatches == (
        "llama.cpp reads GGUF files, and its converter writes no factor tensors for model type 'llama'",
    )
    assert any(line.startswith("longrope export gguf --base ") for line in report.service.serve_with)
    report = check(export(ONE_LIST, "qwen2"), "llama.cpp")
    assert report.service.mismatches == ("llama.cpp loads no rope factors for model type 'qwen2'",)
    assert report.service.serve_with == ()


def test_gguf_files_need_to_know_what_was_measured(write_gguf, tmp_path):
    path = write_gguf()
    with pytest.raises(FactorsError, match="does not say what was measured; add --factors FILE"):
        check(path, "llama.cpp")
    measured_at(tmp_path, (4096, FAR)).rename(tmp_path / "longrope.json")
    assert check(path, "llama.cpp").reference == "longrope.json"
    with pytest.raises(SettingsError, match="is a GGUF file, which engine 'vllm' is not checked with"):
        check(path, "vllm")
    RopeFactors.identity(5e5, 16, 1024).save(tmp_path / "other.json")
    with pytest.raises(FactorsError, match="for rope_theta 500000"):
        check(path, "llama.cpp", factors=tmp_path / "other.json")
    (tmp_path / "text.gguf").write_text("no")
    with pytest.raises(InvalidInputError, match="is not a GGUF file"):
        check(tmp_path / "text.gguf", "llama.cpp", factors=tmp_path / "longrope.json")


# Reports and mistakes


def test_lengths_are_covered_once(export):
    folder = export(THREE_WINDOWS)
    for engine in ENGINES:
        for longest in (None, 40):
            report = check(folder, engine, longest)
            edges = [(row.first, row.last) for row in report.rows]
            assert edges[0][0] == 1
            assert edges[-1][1] == (longest or 256)
            assert all(after[0] == before[1] + 1 for before, after in pairwise(edges))


def test_reports_are_json(export):
    report = check(export(scaled(TWO_LISTS, 1.0, 1.15)), "hf")
    written = json.loads(json.dumps(report.to_dict()))
    assert written["same"] is False
    assert written["rows"][0]["attention_factor"] == {"expected": 1.0, "used": pytest.approx(1.15)}
    assert (written["rows"][0]["same_factors"], written["rows"][0]["same_attention_factor"]) == (True, False)
    assert written["engine"].startswith("transformers 5")


def assert_refused(error, said, *arguments):
    with pytest.raises(error, match=said) as refusal:
        check(*arguments)
    assert "\n" not in str(refusal.value)


def test_mistakes(export, make_tiny_model, tmp_path):
    folder = export(TWO_LISTS)
    assert_refused(SettingsError, "engine 'tgi' is not known; give hf, vllm, sglang", folder, "tgi")
    assert_refused(SettingsError, "max length 512 is above the model's 256", folder, "hf", 512)
    assert_refused(UnsupportedModelError, "none does not exist; give a folder", tmp_path / "none", "hf")
    make_tiny_model().save_pretrained(tmp_path / "plain")
    assert_refused(UnsupportedModelError, "has rope type 'default', so there are no factors", tmp_path / "plain", "hf")
    (folder / "longrope.json").write_text("{")
    assert_refused(FactorsError, "longrope.json is not valid JSON", folder, "vllm")
    (folder / "longrope.json").unlink()
    TWO_LISTS.save(folder / "longrope.json")
    edit(folder, lambda parameters: parameters["short_factor"].pop())
    assert_refused(FactorsError, "short_factor in .* does not hold 8 numbers", folder, "mlx")
