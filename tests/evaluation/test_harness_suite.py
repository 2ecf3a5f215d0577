"""Tasks of lm-evaluation-harness as a suite: local tasks on the embedded model, groups, lengths, bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.demo import model_folder
from longrope.evaluation import harness, harness_tasks
from longrope.evaluation.harness import HarnessSuite, group_means
from longrope.evaluation.harness_tasks import HarnessGroup, HarnessTask, find_tasks
from longrope.evaluation.open_harness import harness_lengths, open_harness
from longrope.evaluation.settings import EvaluationSettings, HarnessSettings
from longrope.exceptions import SettingsError
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.rope.policy import FactorSchedule, FixedFactors, RopePolicy, Window
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress
from longrope.workers.settings import ExecutionSettings

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def write_task(folder: Path, name: str, documents: list[dict[str, Any]], **changes: Any) -> Path:
    """A task of one's own: YAML and JSON Lines."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config))  # which is YAML, too
    return path


def passkeys(repeats: int) -> list[dict[str, Any]]:
    return [
        {
            "text": f"The pass key is {number}. Remember it. {number} is the pass key.\n{FILLER * repeats}\nWhat is "
            "the pass key? The pass key is",
            "choices": [str(number), "70218"],
            "answer": 0,
        }
        for number in (48213, 90417)
    ]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks: short questions, long ones, their group."""
    folder = tmp_path / "tasks"
    write_task(folder, "near", passkeys(1), tag="keys")
    write_task(folder, "far", passkeys(12), tag="keys")
    (folder / "both.yaml").write_text("group: both\ntask: [keys]\naggregate_metric_list: [{metric: acc}]\n")
    return folder


def suite_of(tasks: tuple[str, ...], include: Path, windows: tuple[int, ...], **changes: Any) -> HarnessSuite:
    settings = HarnessSettings(tasks=tasks, include_path=(str(include),), **changes)
    return HarnessSuite(*find_tasks(settings.tasks, settings.include_path), settings, windows)


def records(suite: HarnessSuite, model: Any, tokenizer: Any, policies: dict[str, RopePolicy]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": method, "item": item.key, "length": item.length}
            | suite.measure(model, tokenizer, policy, item.key)
            for method, policy in policies.items()
            for item in suite.items
        ]
    )


def responses(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """Requests and log-likelihoods in each file of a run's responses, by the task's name."""
    found: dict[str, list[tuple[str, float]]] = {}
    for path in sorted((folder / "responses").glob("*.jsonl")):
        events = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        found.setdefault(path.name.partition("-")[0], []).extend(
            (event["request"], event["response"][0]) for event in events
        )
    return found


def test_factors_change_a_long_task_on_the_embedded_model_and_leave_a_short_one(tasks: Path, tmp_path: Path) -> None:
    model = open_model(str(model_folder()), ExecutionSettings(device="cpu"))
    schedule = model.rope.extended_by(yarn(model.rope.identity(), 1024))
    schedule.save(tmp_path / "factors.json")
    settings = HarnessSettings(tasks=("both", str(tasks / "near.yaml")), include_path=(str(tasks),), limit=1)
    windows = harness_lengths(settings, str(tmp_path / "factors.json"), model)
    assert windows == (256, 1024)
    output = tmp_path / "run"
    output.mkdir()
    evaluation = EvaluationSettings(model=str(model_folder()), output=str(output), lengths=windows)
    suite = open_harness(settings, evaluation, model, Progress())
    policies: dict[str, RopePolicy] = {"none": model.rope.policy, "longrope": schedule}
    found = records(suite, model.source.load_model(), model.tokenizer, policies)
    table = suite.table(found).set_index(["method", "task", "metric"])
    assert set(table.index.get_level_values("task")) == {"near", "far", "both"}
    assert table.loc[("none", "both", "acc"), "samples"] == 2
    # Each method has a file of its own for each task.
    by_request: dict[str, dict[str, list[float]]] = {}
    for task, answers in responses(output).items():
        for request, likelihood in answers:
            by_request.setdefault(task, {}).setdefault(request, []).append(likelihood)
    for likelihoods in by_request["near"].values():
        assert likelihoods == pytest.approx([likelihoods[0]] * len(likelihoods), abs=1e-4)
    for likelihoods in by_request["far"].values():
        assert abs(likelihoods[0] - likelihoods[1]) > 0.1
    assert list(table["truncated"]) == [0] * len(table)


Models = Callable[..., PreTrainedModel]
IDENTITY = RopeFactors.identity(10000.0, 16, 64)
SCHEDULE = FactorSchedule((Window(64, IDENTITY), Window(512, yarn(IDENTITY, 512))))


def test_few_shot_examples_and_a_limit(
    tmp_path: Path, make_tiny_model: Models, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    documents = [{"text": f"{number} ", "choices": ["a", "b"], "answer": number % 2} for number in range(9)]
    folder = tmp_path / "tasks"
    write_task(folder, "counts", documents, fewshot_split="test")
    model, policies = make_tiny_model(), {"longrope": SCHEDULE}
    plain = suite_of(("counts",), folder, (64, 512))
    with_shots = suite_of(("counts",), folder, (64, 512), num_fewshot=3, limit=5)
    tables = [each.table(records(each, model, tiny_tokenizer, policies)) for each in (plain, with_shots)]
    assert [set(table["shots"]) for table in tables] == [{0}, {3}]
    assert [set(table["samples"]) for table in tables] == [{9}, {5}]
    again = with_shots.table(records(with_shots, model, tiny_tokenizer, policies))
    pd.testing.assert_frame_equal(tables[1], again)


def test_what_is_too_long_is_cut_and_counted(
    tasks: Path, make_tiny_model: Models, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    suite = suite_of(("both",), tasks, (64, 400))
    table = suite.table(records(suite, make_tiny_model(), tiny_tokenizer, {"longrope": SCHEDULE}))
    counts = table[table["metric"] == "acc"].set_index("task")["truncated"]
    assert counts.to_dict() == {"far": 2, "near": 0, "both": 2}


MADE = """
def texts(max_seq_lengths, tokenizer, **others):
    import random

    from datasets import Dataset
    from transformers import AutoTokenizer

    letters = len(AutoTokenizer.from_pretrained(tokenizer)("x" * 10)["input_ids"]) - 1
    assert (letters, others["words"]) == (10, "few")
    return {"test": Dataset.from_list(
        [{"text": "".join(random.choices("ab", k=n - 10)), "length": n} for n in max_seq_lengths]
    )}


def score(document, answers):
    return {"64": -1.0, str(document["length"]): document["text"].count("a") / (document["length"] - 10)}


def mean(values):
    values = [value for value in values if value != -1]
    return sum(values) / len(values) if values else -1
"""


def test_a_task_that_makes_its_texts_is_an_item_at_each_length(
    tmp_path: Path, make_tiny_model: Models, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "made.py").write_text(MADE)
    (folder / "made.yaml").write_text(
        "task: made\ndataset_path: ''\ncustom_dataset: !function made.texts\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: ''\n"
        "process_results: !function made.score\ngeneration_kwargs: {max_gen_toks: 4, until: []}\n"
        "metric_list: [{metric: '64', aggregation: !function made.mean, higher_is_better: true}]\n"
    )
    (folder / "ruled.yaml").write_text(
        "group: ruled\ntask: [made]\naggregate_metric_list: [{metric: '64', weight_by_size: false}]\n"
    )
    suite = suite_of(("ruled",), folder, (64, 512), lengths=(128, 64), metadata={"words": "few"})
    assert [(item.key, item.length) for item in suite.items] == [("made/64", 64), ("made/128", 128)]
    model = make_tiny_model()
    first, again = (suite.table(records(suite, model, tiny_tokenizer, {"longrope": SCHEDULE})) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)  # the texts do not depend on what was made before
    assert list(first[["task", "length", "metric"]].itertuples(index=False, name=None)) == [
        ("made", 64, "score"), ("ruled", 64, "score"), ("made", 128, "score"), ("ruled", 128, "score"),
    ]  # fmt: skip
    assert 0 < first["value"][0] == first["value"][1] < 1
    assert 0 < first["value"][2] == first["value"][3] < 1


def test_means_of_groups_by_hand() -> None:
    def scores(value: float, error: float, samples: int) -> list[dict[str, Any]]:
        common = {"task": "t", "shots": 5, "samples": samples, "truncated": 1}
        return [{"metric": "acc", "value": value, "error": error, **common}]

    found = {"a": scores(0.2, 0.1, 100), "b": scores(0.6, 0.2, 300)}
    (weighted,) = group_means(HarnessGroup("g", ("a", "b"), {"acc": True}), found)
    assert weighted["value"] == pytest.approx(0.25 * 0.2 + 0.75 * 0.6)
    assert weighted["error"] == pytest.approx(((0.25 * 0.1) ** 2 + (0.75 * 0.2) ** 2) ** 0.5)
    assert (weighted["samples"], weighted["truncated"], weighted["shots"]) == (400, 2, 5)
    (alike,) = group_means(HarnessGroup("g", ("a", "b"), {"acc": False}), found)
    assert alike["value"] == pytest.approx(0.4)
    assert not list(group_means(HarnessGroup("g", ("a", "missing"), {"acc": True}), found))
    assert not list(group_means(HarnessGroup("g", ("a", "b"), {"f1": True}), found))


def test_groups_and_tags_are_taken_apart(tasks: Path) -> None:
    (tasks / "all.yaml").write_text("group: all\ntask: [both, other]\naggregate_metric_list: {metric: acc}\n")
    write_task(tasks, "other", passkeys(1))
    found, groups = find_tasks(("near", "all", "keys"), (str(tasks),))
    assert [task.name for task in found] == ["near", "far", "other"]
    assert [(group.name, group.tasks) for group in groups] == [
        ("both", ("far", "near")), ("all", ("far", "near", "other")),
    ]  # fmt: skip
    assert all(not task.makes_texts for task in found)


def test_a_group_that_changes_its_tasks_is_run_as_a_whole(
    tasks: Path,
    make_tiny_model: Models,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tasks / "changed.yaml").write_text(
        "group: changed\ntask: [{task: near, num_fewshot: 0}, far]\naggregate_metric_list: [{metric: acc}]\n"
    )
    (task,), groups = find_tasks(("changed",), (str(tasks),))
    assert (task.whole_group, groups) == (True, ())
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager  # the harness's own list takes long to read
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: manager(**{**given, "include_defaults": False}))
    suite = suite_of(("changed",), tasks, (64, 400))
    table = suite.table(records(suite, make_tiny_model(), tiny_tokenizer, {"longrope": SCHEDULE}))
    counts = table[table["metric"] == "acc"].set_index("task")[["samples", "truncated"]]
    assert counts.T.to_dict("list") == {"near": [2, 0], "far": [2, 2], "changed": [4, 2]}


@pytest.fixture
def few_defaults(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own list takes long to read; here it is that of the folder."""
    read = harness_tasks.read_index
    monkeypatch.setattr(harness_tasks, "read_index", lambda include, defaults=True: read([str(tasks)], defaults=False))


@pytest.mark.usefixtures("few_defaults")
@pytest.mark.parametrize(
    ("names", "include", "message"),
    [
        (("nearr",), (), r"task 'nearr' is not known .* did you mean near\?"),
        (("zzz",), (), "task 'zzz' is not known .* --include-path"),
        (("near.yaml",), (), "task file near.yaml does not exist"),
        (("near",), ("nowhere",), "folder nowhere of further tasks does not exist"),
        (("{tasks}/broken.yaml",), (), "broken.yaml cannot be used"),
        (("{tasks}/both.yaml",), (), "holds no task"),
        (("{tasks}/empty.yaml",), (), "cannot be used|holds no task"),
    ],
)
def test_bad_tasks_are_refused_in_one_line(
    names: tuple[str, ...], include: tuple[str, ...], message: str, tasks: Path
) -> None:
    (tasks / "broken.yaml").write_text("task: [near\n")
    (tasks / "empty.yaml").write_text("colour: blue\n")
    with pytest.raises(SettingsError, match=message) as refused:
        find_tasks(tuple(name.format(tasks=tasks) for name in names), include)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> LoadedModel:
    return open_model(str(model_folder), ExecutionSettings(device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (32,)}, "--lengths is for tasks that make their own texts"),
        ({"lengths": (128,)}, "length 128 is over the 64 of the longest input"),
        ({"chat_template": True}, "has no chat template"),
        ({"tasks": ()}, "--tasks arc_challenge,hellaswag"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"metadata": {"max_seq_lengths": [4]}}, "give --lengths"),
    ],
)
def test_settings_that_cannot_be(changes: Any, message: str, tasks: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    def go() -> None:
        settings = HarnessSettings(**{"tasks": ("near",), "include_path": (str(tasks),), **changes})
        windows = harness_lengths(settings, None, loaded)
        evaluation = EvaluationSettings(model="m", output=str(tmp_path), lengths=windows)
        open_harness(settings, evaluation, loaded, Progress())

    with pytest.raises(SettingsError, match=message):
        go()


def test_the_longest_input_is_that_of_the_policy(loaded: LoadedModel, tmp_path: Path) -> None:
    yarn(IDENTITY, 256).save(tmp_path / "factors.json")
    given = str(tmp_path / "factors.json")
    assert harness_lengths(HarnessSettings(tasks=("t",)), None, loaded) == (64,)
    assert harness_lengths(HarnessSettings(tasks=("t",)), given, loaded) == (64, 256)
    assert harness_lengths(HarnessSettings(tasks=("t",), max_length=100), given, loaded) == (64, 100)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    monkeypatch.delattr("lm_eval.evaluator", raising=False)
    evaluation = EvaluationSettings(model="m", output=str(tmp_path), lengths=(64,))
    with pytest.raises(SettingsError, match=r"pip install longrope\[eval\]"):
        open_harness(HarnessSettings(tasks=("t",)), evaluation, loaded, Progress())


def test_a_task_of_ones_own_that_changes_is_another_run(tasks: Path) -> None:
    before = suite_of((str(tasks / "near.yaml"),), tasks, (64,)).describe()
    assert before == suite_of((str(tasks / "near.yaml"),), tasks, (64,)).describe()
    write_task(tasks, "near", passkeys(1), doc_to_text="{{text}}!")
    assert before != suite_of((str(tasks / "near.yaml"),), tasks, (64,)).describe()
    assert json.dumps(before)


def test_items_of_equal_policies_share_responses_and_others_do_not(tmp_path: Path) -> None:
    task = HarnessTask("arc/challenge", "arc.yaml")
    suite = HarnessSuite([task], [], HarnessSettings(tasks=("t",)), (64, 512), folder=tmp_path)
    fixed = FixedFactors(IDENTITY)
    files = {suite._responses_file(policy, "arc/challenge") for policy in (fixed, FixedFactors(IDENTITY), SCHEDULE)}
    assert len(files) == 2
    assert all(path is not None and path.parent == tmp_path / harness.RESPONSES_FOLDER for path in files)
