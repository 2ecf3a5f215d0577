"""A dry run finds what would stop a run later, in every stage, and finds nothing where nothing would."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from longrope.cli.main import main
from longrope.data.tokens import TextEncoder
from longrope.exceptions import SettingsError
from longrope.finetune import deepspeed_config, hardware
from longrope.model.load import ModelSource
from longrope.pipeline import dry_run as checks
from longrope.pipeline import room
from longrope.pipeline.dry_run import check_execution, dry_run
from longrope.pipeline.inputs import key_of, stage_inputs
from longrope.pipeline.recipe import read_recipe, ready_recipes
from longrope.pipeline.stages import EvaluateStage, FinetuneStage, ReadjustStage, SearchStage
from longrope.pipeline.state import DONE, FAILED, WAITING, RunState, StageState
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.workers.settings import ExecutionSettings

LONGEST = 2048 * 1024

# --- Ready recipes, with a stand-in for the model ---

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "head_dim": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "torch_dtype": "float32",
}
STAND_INS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "llama2": ("llama", 1e4, {"max_position_embeddings": 4096}),
    "llama3": ("llama", 5e5, {"max_position_embeddings": 8192, "num_key_value_heads": 2}),
    "mistral": ("mistral", 1e6, {"max_position_embeddings": 32768, "num_key_value_heads": 2}),
    "phi3": ("phi3", 1e4, {"max_position_embeddings": 4096}),
    "qwen2.5": ("qwen2", 1e6, {"max_position_embeddings": 131072, "num_attention_heads": 4, "num_key_value_heads": 4}),
}
"""The model type, its base, and what tells it from others, by the folder of its recipes."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files: one document with as many characters as a recipe asks for tokens, and several shorter ones."""
    folder = tmp_path_factory.mktemp("texts")
    sentence = "the window of a model ends where its training did. "
    long = (sentence * (LONGEST // len(sentence) + 2)).rstrip() + "\n\n"
    (folder / "long.jsonl").write_text(json.dumps({"text": long}) + "\n")
    short = json.dumps({"text": sentence * 2000}) + "\n"
    (folder / "short.jsonl").write_text(short * 20)
    return folder


@pytest.fixture
def tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is tokenised once, however often it is read: all stand-ins have the same tokenizer."""
    first, whole = TextEncoder.first, TextEncoder.whole

    def remembered(self: TextEncoder, text: str) -> Any:
        if text not in TOKENS:
            TOKENS[text] = whole(self, text)
        return TOKENS[text]

    def start(self: TextEncoder, text: str, length: int) -> Any:
        if len(text) < LONGEST:
            return first(self, text, length)
        return np.concatenate([self.prefix, remembered(self, text)[:length]]).astype(np.int32)[:length]

    monkeypatch.setattr(TextEncoder, "first", start)
    monkeypatch.setattr(TextEncoder, "whole", remembered)


TOKENS: dict[str, Any] = {}


def stand_in(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny random model of the architecture, with the window of the real one."""
    model_type, base, changes = STAND_INS[family]
    config = tiny_config(model_type, {"rope_theta": base}, **{**SMALL, **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def overrides(name: str, model: Path, texts: Path) -> list[str]:
    """The model, the data and the number of samples in place of a ready recipe's; its lengths stay."""
    recipe = read_recipe(name)
    found = [f"model={model}", "execution.workers=1", "execution.device=cpu", "launch.device=cpu"]
    for stage in recipe.stages:
        own = stage.name
        if isinstance(stage, (SearchStage, ReadjustStage)):
            found += [f"{own}.data.source={texts / 'long.jsonl'}", f"{own}.data.samples=1", f"{own}.data.held_out=0"]
        elif isinstance(stage, FinetuneStage):
            processes = max(stage.settings.sp, 2)
            found += [f"{own}.data={texts / 'short.jsonl'}", f"{own}.launch.gpus={processes}", f"{own}.offload=none"]
        elif isinstance(stage, EvaluateStage) and stage.suite_name != "passkey":
            place = "haystack" if stage.suite_name == "needle" else "source"
            found += [f"{own}.{place}={texts / 'long.jsonl'}"]
            if stage.suite_name == "perplexity":
                found += [f"{own}.samples=1"]
    return found


@pytest.mark.usefixtures("tokens_are_remembered")
@pytest.mark.parametrize("name", sorted(name for name in ready_recipes() if not name.startswith("demo")))
def test_ready_recipes_pass_with_a_model_of_their_architecture(
    name: str, tmp_path: Path, texts: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for package in ("accelerate", "deepspeed", "peft"):
        pytest.importorskip(package)
    family = ready_recipes()[name].parent.name
    model = stand_in(tmp_path / "model", family, tiny_tokenizer)
    recipe = read_recipe(name, overrides(name, model, texts))
    assert dry_run(recipe, tmp_path / "run") == []
    assert not (tmp_path / "run").exists()


# --- What is wrong with a recipe ---

RECIPE = """\
model: MODEL
data:
  documents: {source: DOCUMENTS, samples: 2, held_out: 3}
  training: DOCUMENTS
execution: {workers: 1, device: cpu}
launch: {device: cpu, gpus: 1}
stages:
- evaluate: {suite: passkey, lengths: [128], model: original}
- search: {target_length: 128}
- finetune: {seq_length: 128, global_batch: 2}
- search: {target_length: 256}
- readjust: {windows: [64]}
- evaluate: {suite: perplexity, lengths: [64, 256]}
- export:
- evaluate: {name: served, suite: perplexity, model: exported, lengths: [64, 256]}
"""

Checked = Callable[..., list[str]]


@pytest.fixture
def checked(tmp_path: Path, model_folder: Path, documents_file: Path) -> Checked:
    """The problems of that recipe, or of another, with overrides."""

    def check(*overrides: str, text: str = RECIPE, model: Path = model_folder, output: str = "run") -> list[str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text.replace("MODEL", str(model)).replace("DOCUMENTS", str(documents_file)))
        before = sorted(tmp_path.rglob("*"))
        problems = dry_run(read_recipe(path, overrides), tmp_path / output)
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        assert not any("\n" in problem for problem in problems)
        return problems

    return check


def stages(*lines: str) -> str:
    """That recipe with other stages."""
    return RECIPE[: RECIPE.index("- evaluate")] + "".join(f"- {line}\n" for line in lines)


def test_a_recipe_without_problems(checked: Checked) -> None:
    assert checked() == []


@pytest.mark.parametrize(
    ("override", "line", "problem"),
    [
        ("search-128.algorithm.lambda_max=0.5", 9, "lambda_max 0.5 is below lambda_min 1.0"),
        ("search-128.data.samples=20", 9, "23 documents of at least 128 tokens are needed"),
        ("search-128.data.field=body", 9, "there is no field 'body'"),
        ("search-256.target_length=4k", 11, "5 documents of at least 4096 tokens are needed"),
        ("finetune-128.sp=4", 10, "sp 4 is DeepSpeed Ulysses"),
        ("finetune-128.precision=fp16", 10, "precision fp16 needs a GPU"),
        ("finetune-128.kernel=flash_attention_2", 10, "kernel 'flash_attention_2' needs a GPU"),
        ("finetune-128.report_to=[telegraph]", 10, "report-to 'telegraph' is not known"),
        ("finetune-128.field=body", 10, "there is no field 'body'"),
        ("finetune-128.adapter.targets=[query]", 10, "lora target 'query' is no linear layer"),
        ("readjust.data.samples=20", 12, "documents of at least 64 tokens are needed"),
        ("readjust.algorithm.lambda_max=0.5", 12, "lambda_max 0.5 is below lambda_min 1.0"),
        ("evaluate-perplexity.samples=50", 13, "50 documents of at least 256 tokens are needed"),
        ("evaluate-perplexity.document_length=4k", 13, "documents of at least 4096 tokens are needed"),
        ("evaluate-passkey.lengths=[16]", 8, "16"),
        ("evaluate-passkey.execution.attention=flash_attention_2", 8, "attention 'flash_attention_2' needs a GPU"),
        ("export.short_window=100", 14, "short window 100 is not a window of the schedule"),
        ("served.samples=50", 15, "50 documents of at least 256 tokens are needed"),
    ],
)
def test_a_problem_of_one_stage(checked: Checked, tmp_path: Path, override: str, line: int, problem: str) -> None:
    found = checked(override)
    assert len(found) == 1, found
    assert found[0].startswith(f"{str(tmp_path / 'recipe.yaml')!r} line {line}: ")
    assert problem in found[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (stages("search: {target_length: 64}"), "target length 64 is not longer than the present window of 64"),
        (stages("readjust: {windows: [32]}"), "the model is not extended"),
        (
            stages("finetune: {seq_length: 128, factors: {method: abf, rope_theta: 100}}"),
            "the new rope_theta is 100.0; it must be at least 10000",
        ),
        (stages("finetune: {seq_length: 32, factors: {method: pi}}"), "below the present window of 64"),
        (stages("finetune: {seq_length: 128, factors: other.json}"), "rotary_dim"),
        (
            stages("finetune: {seq_length: 128, factors: given.json}", "evaluate: {suite: passkey, lengths: [256]}"),
            "length 256 is over the 128",
        ),
        (
            stages("search: {target_length: 128}", "finetune: {seq_length: 128, zero: 2, sp: 4, launch: {gpus: 4}}"),
            "sp is 4, but the model has 2 query heads",
        ),
        (
            stages("search: {target_length: 128}", "finetune: {seq_length: 128, zero: 2, launch: {gpus: 3}}"),
            "give a multiple of 3",
        ),
        (
            stages("search: {target_length: 128}", "finetune: {seq_length: 128, data: mixture.yaml}"),
            "'absent.jsonl' does not exist",
        ),
        (
            stages(
                "search: {target_length: 128}",
                "finetune: {seq_length: 128, held_out: {source: DOCUMENTS, samples: 50}}",
            ),
            "50 documents of at least 128 tokens are needed",
        ),
    ],
)
def test_a_problem_of_another_recipe(checked: Checked, tmp_path: Path, text: str, problem: str) -> None:
    yarn(RopeFactors.identity(10000.0, 32, 64), 128).save(tmp_path / "other.json")
    yarn(RopeFactors.identity(10000.0, 16, 64), 128).save(tmp_path / "given.json")
    (tmp_path / "mixture.yaml").write_text("sources:\n  a: {path: absent.jsonl}\n")
    found = checked(text=text)
    assert len(found) == 1, found
    assert problem in found[0]


def test_an_evaluation_is_of_the_model_that_was_trained_last(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = []
    monkeypatch.setattr(checks, "open_methods", lambda rope, *others: windows.append(rope.window))
    monkeypatch.setattr(checks, "suite_opener", lambda *settings: lambda *model: None)
    passkey = "evaluate: {suite: passkey, lengths: [128]"
    trained = "finetune: {seq_length: 128, global_batch: 2}"
    search = ("search: {target_length: 128}", "search: {target_length: 256}")
    found = checked(
        text=stages(
            passkey + ", model: original, name: first}",
            search[0],
            passkey + ", name: searched}",
            trained,
            passkey + ", name: trained}",
            search[1],
            passkey + ", name: searched-again}",
            passkey + ", model: original, name: last}",
        )
    )
    assert found == []
    assert windows == [64, 64, 128, 128, 64]


def test_problems_of_all_stages_at_once(checked: Checked) -> None:
    found = checked(
        "search-128.data.samples=20", "finetune-128.precision=fp16", "finetune-128.field=body", "served.samples=50"
    )
    assert [problem.partition(": ")[2].partition(":")[0] for problem in found] == [
        "search-128", "finetune-128", "finetune-128", "served",
    ]  # fmt: skip


def test_a_model_that_cannot_be_had(checked: Checked) -> None:
    [problem] = checked("model=nobody/nothing")
    assert problem.startswith("model: model 'nobody/nothing' is neither a folder nor reachable on the hub")
    assert problem.endswith("; give a local folder, or log in by `hf auth login` if the model is gated or private")


def test_a_model_that_cannot_see_so_far(
    checked: Checked, tmp_path: Path, make_tiny_model: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for part in (make_tiny_model("mistral", sliding_window=64), tiny_tokenizer):
        part.save_pretrained(tmp_path / "sliding")
    found = checked(model=tmp_path / "sliding")
    told = "attends to the last 64 tokens only"
    # Evaluations are cut to what it sees, and say so.
    assert [told in problem for problem in found] == [True, True, True]
    assert [problem.partition(": ")[2].partition(":")[0] for problem in found] == [
        "search-128", "finetune-128", "search-256",
    ]  # fmt: skip


def test_a_model_without_weights(checked: Checked, tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert all("holds no *.safetensors weights" in problem for problem in checked(model=tmp_path / "bare"))


def test_packages_that_are_not_installed(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr("longrope.finetune.run.find_spec", lambda name: None)
        assert "fine-tuning needs accelerate" in checked()[0]
    monkeypatch.setattr(deepspeed_config, "find_spec", lambda name: None)
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "ray" else object())
    assert "executor 'ray' needs Ray" in checked("served.execution.executor=ray")[0]
    assert "zero 2 needs DeepSpeed" in checked("finetune-128.zero=2")[0]
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    found = checked(text=stages("evaluate: {suite: harness, tasks: [arc_easy], model: original}"))
    assert "the benchmarks need lm-evaluation-harness" in found[0]


@pytest.mark.parametrize(
    ("execution", "model", "told"),
    [
        (
            {},
            {"device": "cuda", "attention": "flash_attention_2"},
            "needs the package flash_attn, which is not installed",
        ),
        ({"gpus_per_worker": 2}, {"device": "auto"}, "need accelerate"),
        ({"gpus_per_worker": 2}, {"device": "cuda"}, "GPUs per worker is 2, but this machine has 1"),
    ],
)
def test_evaluators_that_could_not_be_started(
    execution: dict[str, Any], model: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr(checks.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match=told):
        check_execution(ExecutionSettings(**execution), ModelSource("model", **model))
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    elsewhere = ExecutionSettings(**execution, executor="ray", ray_address="10.0.0.1:6379")
    check_execution(elsewhere, ModelSource("model", **model))  # what the nodes have is not known here


def test_flash_attention_that_does_not_fit_this_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checks.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match=r"flash_attn, which cannot be imported \(undefined symbol: _ZN3c10\); use"):
        check_execution(ExecutionSettings(), ModelSource("model", device="cuda", attention="flash_attention_2"))


def test_a_deepspeed_that_does_not_fit_this_torch(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "deepspeed.py").write_text("raise AttributeError('torch has no\\n_six')")
    monkeypatch.syspath_prepend(tmp_path / "broken")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    [problem] = checked("finetune-128.zero=2")
    told = "zero 2 needs the package deepspeed, which cannot be imported (torch has no _six); install it for this torch"
    assert problem.endswith(f"finetune-128: {told}, or use zero: 0")
    assert checked("finetune-128.zero=0") == []


def test_memory(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_host_memory", lambda: 2**20)
    found = checked()
    assert sum("does not fit: a text of" in problem for problem in found) == 6
    [training] = [problem for problem in found if "finetune-128" in problem]
    assert "this run needs about" in training
    # Of a cluster it is not known here.
    elsewhere = checked("search-128.execution.executor=ray", "search-128.execution.ray_address=10.0.0.1:6379")
    assert [problem for problem in found if problem not in elsewhere] == [
        problem for problem in found if "search-128" in problem
    ]


def test_disk(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**10))
    [problem] = checked("finetune-128.save_limit=99", "finetune-128.save_steps=1")
    assert problem.startswith("output: the run will leave ")
    assert "finetune-128.save_limit=1" in problem


def test_adapters_need_room_for_the_model_that_they_are_folded_into(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr(room, "saved_bytes", lambda config: 10**12)
    assert checked() == []
    assert "finetune-128 leaves" in checked("finetune-128.method=lora")[0]


def begin(folder: Path, recipe: Path, **other: str) -> None:
    """A run in which every stage is done, as far as its folder tells, but for those with another state."""
    states = {}
    for name, given in stage_inputs(read_recipe(recipe)).items():
        state = other.get(name.replace("-", "_"), DONE)
        states[name] = StageState("", "", given, key_of(given), state=state)
        if state == DONE:
            for part in ("results.json", "factors.json", "config.json", "model/config.json"):
                (folder / name / part).parent.mkdir(parents=True, exist_ok=True)
                (folder / name / part).write_text("{}")
            for part in ("a.safetensors", "model/a.safetensors"):
                (folder / name / part).write_text("")
    RunState("recipe", states).save(folder)


def test_what_is_done_takes_no_more_room(checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked() == []
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**10))
    monkeypatch.setattr(hardware, "free_host_memory", lambda: 2**20)
    begin(tmp_path / "begun", tmp_path / "recipe.yaml")
    found = checked(output="begun")
    assert [problem for problem in found if "finetune-128" not in problem] == []
    # By other settings, beside whose results those of the present ones come to lie.
    found = checked("search-128.seed=1", output="begun")
    assert found[-1].startswith("output: the run will leave ")
    assert any("search-256: does not fit" in problem for problem in found)
    begin(tmp_path / "other", tmp_path / "recipe.yaml", search_128=WAITING)
    found = checked(output="other")
    assert "search-128 leaves" in found[-1]
    assert [problem.partition(": ")[2].partition(":")[0] for problem in found[:-1]] == ["finetune-128", "search-128"]


def test_what_an_unfinished_stage_has_written_is_not_asked_for_twice(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked() == []
    begin(tmp_path / "begun", tmp_path / "recipe.yaml", finetune_128=FAILED)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**10))
    assert "finetune-128 leaves" in checked(output="begun")[0]
    checkpoints = tmp_path / "begun" / "finetune-128" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "weights").write_bytes(bytes(2**24))
    assert checked(output="begun") == []


def test_an_export_that_links_its_weights_takes_no_room(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrope.pipeline.disk.saved_bytes", lambda config: 10**12)
    found = [checked(text=stages("search: {target_length: 128}", f"export: {{{how}}}")) for how in ("", "copy: true")]
    assert found[0] == []
    assert "export leaves" in found[1][-1]


def test_outputs(checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in checked(output="file")[0]
    assert "is a file" in checked(output="file/below")[0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert "is not empty and holds no run of a recipe" in checked(output="other")[0]
    monkeypatch.setattr(room.os, "access", lambda path, mode: False)
    assert "cannot be written" in checked()[0]


def test_the_command(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked() == []
    monkeypatch.setenv("COLUMNS", "300")
    for changes, code in (((), None), (("served.samples=50", "search-128.data.samples=20"), 2)):
        arguments = ["longrope", "extend", str(tmp_path / "recipe.yaml"), *changes, "--dry-run"]
        monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(tmp_path / "run")])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or None) == code
        said = capsys.readouterr()
        assert ("nothing stands in their way" in said.out) == (code is None)
        assert (said.out + said.err).count("error: ") == len(changes)
