"""Plans of recipes: against what commands really do, what tensors really take, and what the paper says it took."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from living_tensors import Peak
from tiny_models import llama_to_measure
from tiny_search import InProcessPool, in_process, search_in_process, settings
from transformers import AutoModelForCausalLM, LlamaConfig

from longrope.evaluation.settings import (
    EvaluationSettings,
    NeedlePerplexitySettings,
    NeedleSettings,
    PasskeySettings,
    PerplexitySettings,
)
from longrope.evaluation.suites import suite_opener
from longrope.exceptions import SettingsError
from longrope.finetune.flops import forward_flops
from longrope.finetune.hardware import peak_flops
from longrope.finetune.model_shape import ModelShape
from longrope.model import score, scoring_plan
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.pipeline import probe
from longrope.pipeline import scoring_memory as scoring_memory_module
from longrope.pipeline.cost import Utilisation, piece_seconds, rounds_seconds
from longrope.pipeline.disk import journal_bytes
from longrope.pipeline.extended import extended
from longrope.pipeline.gpus import GPUS, gpu_hardware
from longrope.pipeline.plan import Plan, StagePlan, plan
from longrope.pipeline.probe import Measured
from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.scoring_memory import scoring_memory
from longrope.pipeline.work import RACING_SAVES, Round, Work, evaluation_work, readjust_work, search_work
from longrope.rope.factors import RopeFactors
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress
from longrope.search.readjust import ReadjustSettings, readjust
from longrope.search.settings import AlgorithmSettings
from longrope.workers.settings import ExecutionSettings

DAY = 86400.0
LARGE = 20000  # a vocabulary whose logits take more than a layer
LLAMA_2 = LlamaConfig(max_position_embeddings=4096, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})

PAPER = """
model: llama
data: {documents: {source: text.jsonl, held_out: 0}, training: text.jsonl}
execution: {workers: 1}
stages:
- search: {target_length: 128k, algorithm: {algorithm: paper}}
- finetune: {seq_length: 128k, steps: 400, global_batch: 32, sp: 8, launch: {gpus: 8}}
- search: {target_length: 256k, algorithm: {algorithm: paper}}
- finetune: {seq_length: 256k, steps: 600, global_batch: 32, sp: 8, launch: {gpus: 8, nodes: 2}}
- search: {target_length: 2m, algorithm: {algorithm: paper, iterations: 10}, execution: {workers: 8}}
- readjust: {windows: [4k, 8k], algorithm: {algorithm: paper}}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes a recipe beside the config of Llama-2-7B and a file of text, and reads it."""
    LLAMA_2.save_pretrained(tmp_path / "llama")
    (tmp_path / "text.jsonl").write_text('{"text": "words"}\n')

    def read(text: str, *changes: str) -> Any:
        (tmp_path / "recipe.yaml").write_text(text)
        return read_recipe(tmp_path / "recipe.yaml", changes)

    return read


def one(write: Any, stage: str, gpu: str | None = "a100", gpus: int | None = 8, **options: Any) -> StagePlan:
    """The last stage of a recipe of Llama-2-7B."""
    head = PAPER[: PAPER.index("- search")]
    return plan(write(f"{head}{stage}"), gpu, gpus if gpu else None, **options).stages[-1]


def stage(found: Plan, name: str) -> StagePlan:
    return next(each for each in found.stages if each.name == name)


# What the paper says it took (arXiv 2402.13753, appendix A.1)


def test_figures_of_the_paper(write: Any) -> None:
    found = plan(write(PAPER), "a100", 8, 2)
    days = {each.name: (each.seconds or 0) / DAY for each in found.stages}
    assert days["search-128k"] == pytest.approx(3, rel=0.25)
    assert days["finetune-128k"] == pytest.approx(7, rel=0.25)
    assert days["finetune-256k"] == pytest.approx(14, rel=0.25)
    # A candidate's three samples at 2048k, on eight GPUs.
    search = stage(found, "search-2m")
    texts = int(search.work.split()[0])
    minutes = (search.flops or 0) / texts * 3 / (8 * 312e12 * Utilisation().scoring) / 60
    assert minutes == pytest.approx(50, rel=0.25)
    assert [each.devices for each in found.stages[:4]] == [1, 8, 1, 16]
    assert stage(found, "finetune-256k").notes == ()


def test_figures_of_the_paper_that_contradict_its_others(write: Any) -> None:
    found = plan(write(PAPER), "a100", 8, 2)
    # 64 + 40 * 32 candidates on five samples of 256k are more than one A100 could do in 3 days at its peak.
    assert (stage(found, "search-256k").flops or 0) > 1.7 * 3 * DAY * 312e12
    # At 50 minutes each, the 32 + 10 * 16 candidates of ten iterations take 6.7 days, not 5.
    assert (stage(found, "search-2m").seconds or 0) / DAY == pytest.approx(192 * 50 / 60 / 24, rel=0.1)


def test_shares_of_the_peak_are_assumed_aloud_and_can_be_changed(write: Any) -> None:
    recipe = write(PAPER)
    usual, half = (plan(recipe, "a100", 8, 2, utilisation=Utilisation.parse(each)) for each in ("0.5", "0.25"))
    for before, after in zip(usual.stages, half.stages, strict=True):
        assert after.seconds == pytest.approx(2 * (before.seconds or 0))
        assert after.flops == before.flops
    assert any("312 TFLOP/s" in note and "25% in scoring" in note and "--utilisation" in note for note in half.notes)
    only = Utilisation.parse("training=0.3")
    assert only == replace(Utilisation(), training=0.3)
    for text in ("much", "1.5", "scorin=0.5", "training=0", "training="):
        with pytest.raises(SettingsError, match="utilisation"):
            Utilisation.parse(text)


# How much there is to do


def counted(rounds: Sequence[Round]) -> Counter[int]:
    found: Counter[int] = Counter()
    for each in rounds:
        for work in each:
            found[work.length] += work.count
    return found


def opened(folder: Path) -> LoadedModel:
    return open_model(str(folder), ExecutionSettings(device="cpu"))


def test_a_search_scores_as_many_texts_as_planned(model_folder: Path, documents_file: Path, tmp_path: Path) -> None:
    asked = settings(model_folder, documents_file, tmp_path / "run", target_length=256)
    _, pool = search_in_process(asked)
    alone, first, *others = search_work(opened(model_folder), asked)
    assert (alone[0].count, first[0].count) == (1, 8 * 2 - 1)
    assert_as_planned([alone, first, *others], pool)
    journal = (tmp_path / "run" / "evaluations.jsonl").stat().st_size
    assert journal < journal_bytes([alone, first, *others]) < 4 * journal


def test_tokens_that_a_search_does_not_score_are_no_part_of_its_plan(
    model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    asked = settings(model_folder, documents_file, tmp_path / "run", target_length=256)
    for changes, predicted in (({}, 255), ({"last": 20}, 20), ({"objective": "needle"}, 8)):
        rounds = search_work(opened(model_folder), replace(asked, data=replace(asked.data, **changes)))
        whole = {work.predicted for each in rounds for work in each if work.length == 256}
        assert whole == {predicted}, changes


def test_more_last_tokens_than_a_text_has_are_not_planned(
    model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    asked = settings(model_folder, documents_file, tmp_path / "run", target_length=256)
    with pytest.raises(SettingsError, match=r"last is 256, but a text of 256 tokens has 255 .* or null where"):
        search_work(opened(model_folder), replace(asked, data=replace(asked.data, last=256)))


def test_racing_is_expected_to_save_a_share_once_it_drops_anybody(
    model_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    asked = settings(model_folder, documents_file, tmp_path / "run", target_length=256)
    searched = {
        racing: search_work(
            opened(model_folder), replace(asked, algorithm=AlgorithmSettings(max_evaluations=67, racing=racing))
        )
        for racing in (True, False)
    }
    full = 2 + 4  # one evaluation, the rest of the seeds, and the rounds of 8 in which 32 come to be known
    raced, whole = searched[True][full:], searched[False][full:]
    assert searched[True][:full] == searched[False][:full]
    assert raced[-1] == whole[-1], "the comparison"
    scored, all_ = (sum(counted(rounds[:-1]).values()) for rounds in (raced, whole))
    assert scored == pytest.approx((1 - RACING_SAVES) * all_, rel=0.02)


def assert_as_planned(rounds: Sequence[Round], pool: InProcessPool) -> None:
    """The plan has three held-out texts more for each of the searched factors that are a method, or each other."""
    spared = sum(counted(rounds).values()) - len(set(pool.asked))
    assert spared in (0, 3, 6)


def test_a_readjustment_scores_as_many_texts_as_planned(extended_factors: Path, searched_inputs: Any) -> None:
    model_folder, documents_file, folder = searched_inputs
    like = settings(model_folder, documents_file, folder)
    asked = ReadjustSettings(
        model=str(model_folder),
        output=str(folder / "run"),
        windows=(32, 48),
        data=like.data,
        factors=str(extended_factors),
        execution=like.execution,
        algorithm=replace(like.algorithm, attention_factor="present"),
    )
    with in_process() as pools:
        readjust(asked)
    model = opened(model_folder)
    planned = readjust_work(replace(model, rope=extended(model.rope, 256)), asked)
    for pool, window in zip(pools, (32, 48), strict=True):
        assert_as_planned(planned[window], pool)


@pytest.fixture
def searched_inputs(model_folder: Path, documents_file: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    return model_folder, documents_file, tmp_path


@pytest.fixture
def extended_factors(model_folder: Path, tmp_path: Path) -> Path:
    source = ModelSource(str(model_folder))
    rope = extended(read_rope(source.load_config(), model_folder), 256)
    rope.present.save(tmp_path / "factors.json")
    return tmp_path / "factors.json"


def test_suites_have_as_many_items_as_planned(model_folder: Path, documents_file: Path, tmp_path: Path) -> None:
    model, text = opened(model_folder), str(documents_file)
    for suite in (
        PerplexitySettings(source=text, samples=3),
        PerplexitySettings(source=text, samples=2, protocol="sliding", stride=64),
        NeedlePerplexitySettings(source=text, samples=4),
        NeedleSettings(haystack=text, depth_interval=30, trials=2),
        PasskeySettings(trials=5, introduction=False),
    ):
        asked = EvaluationSettings(
            model=str(model_folder), output=str(tmp_path), lengths=(160, 256), methods=("none", "pi")
        )
        items = suite_opener(asked, suite)(model, Progress()).items
        planned = evaluation_work(asked, suite, model.config)
        assert planned is not None
        assert counted([planned]) == {length: 2 * count for length, count in Counter(i.length for i in items).items()}
    windows = evaluation_work(asked, PerplexitySettings(source=text, protocol="sliding", stride=64), model.config)
    assert windows is not None
    assert [work.passes for work in windows] == [3, 1]  # of documents of 256 tokens


def test_scoring_is_a_forward_pass() -> None:
    shape = ModelShape.of(LLAMA_2)
    # 2 N a token, and 4 heads head_dim for each pair of a query and a key before it.
    weights = 2 * (6_738_415_616 - 32000 * 4096 - 65 * 4096) * 131072
    pairs = 32 * 4 * 4096 * 131072 * 131073 / 2
    assert forward_flops(shape, 131072, 131072) == pytest.approx(weights + pairs)
    assert (weights + pairs) / 600e12 == pytest.approx(10.4, rel=0.01)


def test_a_token_that_is_written_reads_all_weights_and_three_times_its_keys_and_values() -> None:
    shape, read = ModelShape.of(LLAMA_2), Work(length=1024, count=1, predicted=1)
    wrote = replace(read, length=1034, written=10)
    seconds = [piece_seconds(shape, work, 2, 312e12, 2e12, Utilisation(generation=0.5)) for work in (read, wrote)]
    keys_and_values = 2 * 2 * 32 * 4096 * 1034
    assert seconds[1] - seconds[0] == pytest.approx(10 * (2 * 6_738_415_616 + 3 * keys_and_values) / 1e12)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), min_size=1, max_size=5), st.integers(1, 9))
@examples(max_examples=40)
def test_workers_share_the_pieces(pieces: list[tuple[int, int]], workers: int) -> None:
    work = tuple(Work(length=length, count=count, predicted=1) for length, count in pieces)
    total, longest = sum(length * count for length, count in pieces), max(length for length, _ in pieces)
    found = rounds_seconds([work], workers, lambda each: float(each.length))
    assert max(total / workers, longest) <= found + 1e-9 <= total / workers + longest + 1e-9
    assert rounds_seconds([work, work], workers, lambda each: float(each.length)) == pytest.approx(2 * found)


# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("intermediate", "kv_heads", "vocabulary"), [(704, 4, 300), (256, 4, 300), (1408, 1, 300), (64, 1, LARGE)]
)
def test_tensors_of_scoring_take_what_was_planned(
    dtype: torch.dtype, intermediate: int, kv_heads: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "_LOGITS", 1 << 21)
    planned, taken = planned_and_taken(llama_to_measure(intermediate, kv_heads, vocabulary), dtype, 1024)
    assert ("logits" in planned) == (vocabulary == LARGE)
    assert seen(planned, vocabulary) == pytest.approx(taken, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("intermediate", "kv_heads", "vocabulary"), [(704, 4, 300), (1408, 1, 300), (64, 1, LARGE)])
def test_tensors_of_scoring_layer_by_layer_take_what_was_planned(
    dtype: torch.dtype, intermediate: int, kv_heads: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "_LOGITS", 1 << 22)
    for module in (scoring_plan, scoring_memory_module):
        monkeypatch.setattr(module, "CPU_CHUNK", 512)
    planned, taken = planned_and_taken(llama_to_measure(intermediate, kv_heads, vocabulary), dtype, 4096)
    # Beside logits a chunk's states are there.
    assert seen(planned, vocabulary) == pytest.approx(taken, rel=0.06 if vocabulary == LARGE else 0.03)


def planned_and_taken(config: Any, dtype: torch.dtype, length: int) -> tuple[dict[str, float], float]:
    """Bytes of what scoring a text needs beside the model, as planned, and as its tensors took at most."""
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with Peak(model.parameters()) as peak:
        score.score_blocks(model, torch.arange(length) % 300, [RopeFactors.identity(10000.0, 64, 512)])
    work = Work(length=length, count=1, predicted=length - 1)
    parts = scoring_memory(ModelShape.of(config), work, dtype.itemsize)
    return {name: size for name, size in parts.items() if name not in ("weights", "libraries")}, peak.most


def seen(planned: dict[str, float], vocabulary: int) -> float:
    """Bytes together, without log-probabilities, which live and die inside one operation."""
    unseen = 4.0 * vocabulary * score.slice_length(1, vocabulary) if vocabulary == LARGE else 0.0
    return sum(planned.values()) - unseen


def test_what_does_not_fit_says_what_would(write: Any) -> None:
    fits = one(write, "- search: {target_length: 128k}")
    assert (fits.fits, fits.notes) == (True, ())
    # 64 GiB of K and V for 128k tokens, beside the weights.
    answers = one(write, "- evaluate: {suite: passkey, lengths: [128k]}")
    assert not answers.fits
    assert answers.notes[0].startswith("does not fit: a text of 128k needs 8")
    assert "execution.gpus_per_worker: 2 would make it fit" in answers.notes[0]
    spread = one(write, "- evaluate: {suite: passkey, lengths: [128k], execution: {gpus_per_worker: 2}}")
    assert spread.fits
    assert spread.memory < spread.memory_free < answers.memory  # type: ignore[operator]
    # One layer's K and V of all positions, whatever holds the other layers.
    assert one(write, "- search: {target_length: 2m}").fits
    long = one(write, "- search: {target_length: 8m, execution: {gpus_per_worker: 8}}")
    assert not long.fits
    assert "more GPUs for each worker do not make it fit" in long.notes[0]
    assert one(write, "- search: {target_length: 8m}", "b300").fits
    alone = one(write, "- finetune: {seq_length: 128k, factors: {method: pi}}", gpus=1)
    assert not alone.fits
    assert "would make it fit" in alone.notes[0]
    cannot = one(write, "- finetune: {seq_length: 128k, global_batch: 3, factors: {method: pi}}")
    assert (cannot.fits, cannot.seconds) == (False, None)
    assert cannot.notes[0].startswith("cannot run: global-batch is 3")


# Devices


def test_processes_that_score_a_text_together(write: Any) -> None:
    search = "- search: {target_length: 2m, algorithm: {algorithm: paper}, execution: {workers: 1%s}}"
    alone, together = (one(write, search % more) for more in ("", ", sp: 8"))
    assert (alone.devices, together.devices) == (1, 8)
    assert together.seconds == pytest.approx((alone.seconds or 0) / 8, rel=0.01)
    assert together.flops == alone.flops
    # Each has all weights, and keys and values of all positions; of the residual stream, of 16 GiB, an eighth.
    assert (alone.memory - together.memory) / 2**30 == pytest.approx(14, abs=0.1)
    assert not any("one after the other" in note for note in together.notes)


def test_layers_on_several_gpus_work_in_turn(write: Any) -> None:
    search = "- search: {target_length: %s, algorithm: {algorithm: paper}, execution: {workers: null%s}}"
    apart = one(write, search % ("128k", ", gpus_per_worker: 1"))
    together = one(write, search % ("128k", ", gpus_per_worker: 8"))
    assert apart.devices == together.devices == 8
    assert together.seconds == pytest.approx(8 * (apart.seconds or 0), rel=0.01)
    assert together.memory < apart.memory
    assert any("one after the other" in note for note in together.notes)
    halves, whole = (one(write, search % ("16k", share)) for share in (", gpus_per_worker: 0.5", ""))
    assert halves.seconds == pytest.approx(whole.seconds or 0, rel=0.02)
    assert halves.memory == pytest.approx(2 * whole.memory)


def test_a_stage_has_the_gpus_that_it_asks_for(write: Any) -> None:
    full = "- finetune: {seq_length: 128k, steps: 10, warmup: 0, global_batch: 32, sp: 8, factors: {method: pi}%s}"
    eight, sixteen = one(write, full % ""), one(write, full % ", launch: {gpus: 16}")
    assert (eight.devices, sixteen.devices) == (8, 16)
    assert sixteen.seconds == pytest.approx((eight.seconds or 0) / 2)
    assert sixteen.notes == ("asks for 16 GPUs, more than the 8 of this plan",)
    lora = one(write, full % ", method: lora")
    assert (lora.flops or 0) < (eight.flops or 0)
    assert lora.disk < eight.disk / 5
    watched = one(write, full % ", held_out: {source: text.jsonl}")
    shape = ModelShape.of(LLAMA_2)
    texts = 2 * 5 * sum(forward_flops(shape, length, length - 1) for length in (4096, 131072))
    assert (watched.flops or 0) - (eight.flops or 0) == pytest.approx(texts)
    # Five texts before and after: under ZeRO 3 all GPUs score one together, and else each has one of its own.
    apart, alone = (one(write, full % f", zero: 2{more}") for more in (", held_out: {source: text.jsonl}", ""))
    together = (watched.seconds or 0) - (eight.seconds or 0)
    assert together == pytest.approx(5 * ((apart.seconds or 0) - (alone.seconds or 0)), rel=0.05)


def test_a_stage_on_some_gpus_has_their_share_of_the_host(write: Any) -> None:
    text = "- finetune: {seq_length: 16k, sp: 4, offload: optimizer, factors: {method: pi}, launch: {gpus: %d}}"
    all_of_it, half = (one(write, text % gpus, host_memory=160) for gpus in (8, 4))
    assert (all_of_it.fits, all_of_it.notes) == (True, ())
    assert not half.fits
    assert "on each host, and 80.0 GiB are free" in half.notes[0]


def test_weights_that_an_export_may_have_to_copy(write: Any) -> None:
    export = one(write, "- search: {target_length: 128k}\n- export: {copy: true}")
    assert export.disk == 2 * ModelShape.of(LLAMA_2).parameters
    assert one(write, "- search: {target_length: 128k}\n- export: {config_only: true}").disk == 0


def test_every_gpu_that_can_be_named_has_a_peak() -> None:
    for name, each in GPUS.items():
        assert peak_flops(each.name, "bf16") is not None, name
        assert gpu_hardware(name.upper(), 4, 2).devices == 8
    assert gpu_hardware("a100-40gb").memory < gpu_hardware("a100").memory  # type: ignore[operator]
    with pytest.raises(SettingsError, match="gpu 'h1000' is not known; use a10g, a100,"):
        gpu_hardware("h1000")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gpu": "h100", "measure": True}, "measuring is done on this machine"),
        ({"gpu": None, "gpus": 8}, "add --gpu h100"),
        ({"gpu": None, "gpus": None, "nodes": 2}, "add --gpu"),
        ({"gpu": "h100", "gpus": 0}, "gpus is 0"),
        ({"gpu": None, "gpus": None, "measure": True, "utilisation": Utilisation()}, "leave it or measuring away"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs of its own")
def test_arguments_that_exclude_each_other(write: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        plan(write(PAPER), **options)


def test_totals_and_what_is_not_known(write: Any) -> None:
    found = plan(write(f"{PAPER}- export:\n"), "h100", 8)
    assert found.seconds == pytest.approx(sum(each.seconds or 0 for each in found.stages))
    assert found.gpu_hours == pytest.approx(sum((each.seconds or 0) * each.devices / 3600 for each in found.stages))
    assert found.disk > 100e9
    record = json.loads(json.dumps(found.to_dict()))
    assert record["total"]["gpu_hours"] == found.gpu_hours
    assert record["stages"][0]["flops"] == found.stages[0].flops
    unknown = plan(write(f"{PAPER}- evaluate: {{suite: harness, tasks: [arc_easy]}}\n"), "h100", 8)
    assert unknown.seconds is None
    assert unknown.stages[-1].notes == ("not estimated: its tasks decide what is to be done",)


# Without a data sheet


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs of its own")
def test_on_a_cpu_time_is_unknown_until_it_is_measured(write: Any) -> None:
    found = plan(write(PAPER))
    assert {each.seconds for each in found.stages} == {None}
    assert "duration: unknown on a CPU, add --measure" in found.notes
    assert (found.flops, found.gpu_hours) == (plan(write(PAPER), "a100").flops, None)


def test_measured_pieces_stand_for_all_of_them() -> None:
    shape = ModelShape.of(LLAMA_2)
    measured = Measured(shape=shape, pieces={1024: [2.0, 4.0]}, steps=[10.0, 30.0], start=5.0)
    rounds = [(Work(length=1024, count=6, predicted=1023),)]
    blank = StagePlan(name="a", kind="search", does="")
    found = measured.complete(blank, lambda piece: rounds_seconds(rounds, 2, piece), steps=3)
    assert (found.fastest, found.seconds, found.slowest) == (5 + 6 + 30, 5 + 9 + 60, 5 + 12 + 90)
    shorter = (Work(length=512, count=1, predicted=511),)
    share = forward_flops(shape, 512, 511) / forward_flops(shape, 1024, 511)
    found = measured.complete(blank, lambda piece: rounds_seconds([shorter], 1, piece))
    assert found.seconds == pytest.approx(5 + 3 * share)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would be measured on the GPU")
def test_real_pieces_are_measured(
    model_folder: Path, documents_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.0)
    (tmp_path / "recipe.yaml").write_text(
        f"""
model: {model_folder}
data: {{documents: {{source: {documents_file}}}, training: {documents_file}}}
execution: {{workers: 1}}
stages:
- search: {{target_length: 128, data: {{samples: 2, held_out: 3}}, algorithm: {{max_evaluations: 9}}}}
- finetune: {{seq_length: 128, steps: 50, global_batch: 8, launch: {{gpus: 1}}}}
- readjust: {{windows: [32, 48], data: {{samples: 2, held_out: 3}}}}
- evaluate: {{suite: passkey, lengths: [128], trials: 2, introduction: false}}
- export:
"""
    )
    recipe = read_recipe(tmp_path / "recipe.yaml")
    with in_process() as pools:
        monkeypatch.setattr(probe, "make_pool", _pool_of(pools))
        monkeypatch.setattr(probe, "run_apart", probe.run_here)
        found = plan(recipe, measure=True)
    for each in found.stages[:4]:
        assert 0 < (each.fastest or 0) <= (each.seconds or 0) <= (each.slowest or 0), each.name
    assert (found.seconds, found.gpu_hours) != (None, None)
    assert found.utilisation is None
    # One piece to warm up and three that count, at each length: no more than that for a plan.
    assert [len(pool.asked) for pool in pools] == [4, 4, 4, 4]


def _pool_of(pools: list[Any]) -> Any:
    def make_pool(factory: Any, *others: object) -> Any:
        pools.append(InProcessPool(factory))
        return pools[-1]

    return make_pool


def held(found: StagePlan) -> float:
    """Bytes where most are held."""
    assert found.memory is not None
    return found.memory


def at_1m(write: Any, execution: str, host_memory: float, gpu: str = "a100-40gb", **options: Any) -> StagePlan:
    """A search on texts that GPUs of 40 GB have no room for beside weights, K and V: 8 GiB of residual stream each."""
    stage = f"- search: {{target_length: 1m, execution: {execution}}}"
    return one(write, stage, gpu, host_memory=host_memory, **options)


def test_residual_streams_must_fit_into_main_memory(write: Any) -> None:
    # A GiB of libraries goes with each.
    assert at_1m(write, "{workers: 8}", 72).fits
    less = at_1m(write, "{workers: 8}", 71)
    assert not less.fits
    assert held(less) < (less.memory_free or 0)
    assert less.notes[0] == (
        "does not fit: a text of 1m has its residual stream in main memory, 72.0 GiB for the workers of a node, and "
        "71.0 GiB are there; execution.gpus_per_worker: 2 and workers: 4 would make it fit"
    )
    assert at_1m(write, "{workers: 4, gpus_per_worker: 2}", 1).fits
    assert at_1m(write, "{workers: 7}", 71).fits
    assert at_1m(write, "{workers: 8}", 1, "a100").fits  # which has room itself


def test_processes_that_share_a_text_share_its_residual_stream(write: Any) -> None:
    assert at_1m(write, "{workers: 4, sp: 2}", 1).fits
    two = "- search: {target_length: 2m, execution: {workers: 4, sp: 2}}"
    # 16 GiB of a text of 2m and a GiB for each of two processes, 4 times.
    assert one(write, two, "rtx6000-ada", host_memory=72).fits
    assert "72.0 GiB for the workers" in one(write, two, "rtx6000-ada", host_memory=71).notes[0]
    assert "execution.workers: 3 would make it fit" in one(write, two, "rtx6000-ada", host_memory=71).notes[0]


def test_fewer_workers_are_advised_where_more_gpus_are_not_there(write: Any) -> None:
    def found(workers: int, host_memory: float) -> StagePlan:
        execution = f"{{executor: ray, workers: {workers}}}"
        return at_1m(write, execution, host_memory, gpus=1, nodes=4)

    assert found(4, 9).fits  # one on each node
    assert "use machines with more memory" in found(4, 8).notes[0]


def test_evaluators_that_share_a_gpu_are_planned_by_their_parts_of_it(write: Any) -> None:
    # Half of a GPU holds the weights, K and V, but no residual stream.
    shared = at_1m(write, "{gpus_per_worker: 0.5, workers: 2}", 18, "a100")
    assert shared.fits
    assert held(shared) == pytest.approx(2 * held(at_1m(write, "{}", 18)), rel=0.01)
    less = at_1m(write, "{gpus_per_worker: 0.5, workers: 2}", 17, "a100").notes[0]
    assert "18.0 GiB for the workers of a node" in less
    assert less.endswith("execution.gpus_per_worker: 1 would make it fit")
    # No share spans two GPUs, so that sixteen GPUs have sixteen workers, not seventeen.
    assert at_1m(write, "{gpus_per_worker: 0.9, workers: 17}", 144, gpus=16).fits
    assert at_1m(write, "{gpus_per_worker: 0}", 72).notes == (
        "cannot run: evaluators have 0 GPUs each; add device: cpu, or leave gpus_per_worker away",
    )


def test_weights_that_no_gpu_holds_are_planned_layer_by_layer(write: Any) -> None:
    search = "- search: {target_length: 16k, execution: {workers: 2, gpus_per_worker: %s}}"
    whole, half = one(write, search % 1, "a10g"), one(write, search % 0.5, "a10g")
    assert (whole.fits, whole.notes) == (True, ())
    assert half.fits
    assert held(half) < held(whole)
    assert "read from main memory or disk for every text" in half.notes[0]
