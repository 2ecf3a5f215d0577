"""What a user gets wrong is one clear line, before anything is started or written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import rotary_dim
from tiny_runs import LENGTH, begin, tiny_settings, write_factors

from longrope.exceptions import InvalidInputError
from longrope.finetune.checkpoints import Checkpoint, seal
from longrope.finetune.launch import LaunchSettings, Plan
from longrope.finetune.run import check, finetune
from longrope.finetune.run_record import RunRecord
from longrope.finetune.settings import AdapterSettings, FinetuneSettings, HeldOutSettings, MemorySettings

Given = Callable[..., FinetuneSettings]


@pytest.fixture
def given(tmp_path: Path, model_folder: Path, documents_file: Path) -> Given:
    """Settings of a run that would go well, with changes."""

    def settings(**changes: Any) -> FinetuneSettings:
        return replace(tiny_settings(tmp_path, model_folder, documents_file), **changes)

    return settings


def refused(settings: FinetuneSettings, processes: int = 1, **options: Any) -> str:
    """The message with which a run is refused; nothing of it may be left."""
    output = Path(settings.output)
    before = sorted(output.rglob("*"))
    with pytest.raises(InvalidInputError) as caught:
        finetune(settings, LaunchSettings(gpus=processes), tell=lambda line: None, **options)
    assert sorted(output.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_factors_of_another_model(given: Given, tmp_path: Path) -> None:
    factors = write_factors(tmp_path / "other.json", rotary_dim=32)
    assert "rotary_dim" in refused(given(factors=str(factors)))


def test_without_accelerate(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrope.finetune.run.find_spec", lambda name: None)
    assert "pip install longrope[finetune]" in refused(given())


def test_no_factors(given: Given, tmp_path: Path) -> None:
    assert "does not exist" in refused(given(factors=str(tmp_path / "absent.json")))


def test_a_length_beyond_the_factors(given: Given) -> None:
    assert "seq-length 512 is over the 256" in refused(given(seq_length=512))


def test_an_sp_that_does_not_fit_the_heads(given: Given) -> None:
    message = refused(given(sp=4, zero=2), processes=4)
    assert "sp is 4, but the model has 2 query heads" in message


def test_an_sp_that_does_not_fit_the_processes(given: Given) -> None:
    assert "sp is 2, but there are 3 processes" in refused(given(sp=2, zero=2), processes=3)


def test_a_batch_that_cannot_be_shared(given: Given) -> None:
    assert "give a multiple of 3" in refused(given(zero=2), processes=3)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("sources: {}\n", "sources"),
        ("sources:\n  a: {path: documents.jsonl, weight: 0}\n", "weight"),
        ("sources:\n  a: {path: documents.jsonl, weight: -1}\n", "weight"),
        ("sources:\n  a: {path: absent.jsonl, weight: 1}\n", "absent.jsonl"),
    ],
)
def test_a_mixture_of_nothing(given: Given, tmp_path: Path, documents_file: Path, mixture: str, message: str) -> None:
    (tmp_path / "documents.jsonl").write_bytes(documents_file.read_bytes())
    (tmp_path / "mixture.yaml").write_text(mixture)
    assert message in refused(given(data=str(tmp_path / "mixture.yaml")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "shifted-sparse", "group": 4 * LENGTH}, "group is 512 for segments of 128"),
        ({"method": "lora", "adapter": AdapterSettings(targets=("query",))}, "'query' is no linear layer"),
    ],
)
def test_what_the_model_cannot_have(given: Given, changes: dict[str, Any], message: str) -> None:
    assert message in refused(given(**changes))


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("deepseek_v3", {"attention": "shifted-sparse"}, "its keys and values are compressed"),
        ("mixtral", {"memory": MemorySettings(tile_mlp=16)}, "has mixtures of experts"),
    ],
)
def test_what_only_some_models_can_have(
    given: Given,
    tmp_path: Path,
    make_tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
    model_type: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    for part in (make_tiny_model(model_type), tiny_tokenizer):
        part.save_pretrained(tmp_path / "model")
    factors = write_factors(tmp_path / "factors.json", rotary_dim=rotary_dim(model_type))
    assert message in refused(given(model=str(tmp_path / "model"), factors=str(factors), **changes))


def test_qlora_without_what_it_needs(given: Given) -> None:
    assert "qlora needs" in refused(given(method="qlora"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_qlora_on_the_gpus_of_a_cluster(given: Given) -> None:
    checked = check(given(method="qlora", zero=2), Plan("ray", 2, 2), "cuda", lambda line: None)
    assert checked.settings.method == "qlora"


def test_offloading_without_a_compiler(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = refused(given(zero=2, offload="optimizer"))
    assert message.startswith("offload optimizer needs a C++ compiler")


def test_half_precision_that_a_cpu_has_not(given: Given) -> None:
    assert "fp16 needs a GPU" in refused(given(precision="fp16"))
    assert "flash_attention_2' needs a GPU" in refused(given(kernel="flash_attention_2"))


def test_reports_to_nobody(given: Given) -> None:
    assert "report-to 'telegraph' is not known; use" in refused(given(report_to=("telegraph",)))


def test_held_out_lengths_beyond_the_factors(given: Given, documents_file: Path) -> None:
    held_out = HeldOutSettings(source=str(documents_file), lengths=(1024,))
    assert "held-out length 1024 is over the 256" in refused(given(held_out=held_out))


def test_an_output_that_holds_something_else(given: Given) -> None:
    settings = given()
    Path(settings.output).mkdir()
    (Path(settings.output) / "thesis.txt").write_text("mine")
    assert "not empty" in refused(settings)
    assert "not empty" in refused(settings, resume=True)


@pytest.fixture
def started(given: Given) -> FinetuneSettings:
    """Settings of a run whose folder is there."""
    settings = given()
    checked = check(settings, LaunchSettings().resolve(0), "cpu", lambda line: None)
    begin(checked.settings, checked.fingerprint)
    return settings


def test_a_run_is_not_begun_twice(started: FinetuneSettings) -> None:
    assert "go on with it by --resume" in refused(started)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"steps": 20}, "steps 10, not 20"), ({"seq_length": LENGTH * 2}, "seq-length 128, not 256")],
)
def test_a_run_is_not_resumed_as_another(started: FinetuneSettings, changes: dict[str, Any], message: str) -> None:
    assert message in refused(replace(started, **changes), resume=True)


def test_a_run_is_not_resumed_with_other_factors(started: FinetuneSettings, tmp_path: Path) -> None:
    factors = write_factors(tmp_path / "others.json", attention_factor=1.3)
    assert "other weights or factors" in refused(replace(started, factors=str(factors)), resume=True)


def test_a_run_is_not_resumed_with_other_data(started: FinetuneSettings, tmp_path: Path, documents_file: Path) -> None:
    checked = check(started, LaunchSettings().resolve(0), "cpu", lambda line: None)
    folder = Path(started.output) / "checkpoints" / "checkpoint-4"
    folder.mkdir(parents=True)
    seal(Checkpoint(folder, 4, checked.stream.state_dict()), RunRecord.read(Path(started.output)).run, 1)
    other = tmp_path / "documents.jsonl"
    other.write_text(documents_file.read_text() * 2)
    (Path(started.output) / "factors.json").write_text(checked.factors)
    message = refused(replace(started, data=str(other)), resume=True)
    assert message.startswith("the data of the checkpoint was read with another mixture")


def test_a_checkpoint_of_another_run(started: FinetuneSettings) -> None:
    folder = Path(started.output) / "checkpoints" / "checkpoint-4"
    folder.mkdir(parents=True)
    seal(Checkpoint(folder, 4, {}), "another", 1)
    assert "belongs to another run" in refused(started, resume=True)
