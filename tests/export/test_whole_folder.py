"""An exported folder is whole or not there, whatever ends the export; weights never change."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from export_cases import factors, save, two_windows
from transformers import AutoModelForCausalLM

from longrope.exceptions import RunExistsError, UnsupportedModelError
from longrope.export.folder import whole_folder
from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource

KILLED = """
    import shutil, sys
    from longrope.export import huggingface
    from longrope.model.load import ModelSource
    from longrope.rope.policy import load_factors

    def copy_half_and_wait(source, target):
        data = source.read_bytes()
        target.write_bytes(data[: len(data) // 2])
        print("half", flush=True)
        sys.stdin.read()

    shutil.copy2 = copy_half_and_wait
    huggingface.export_folder(ModelSource(sys.argv[1]), load_factors(sys.argv[2]), sys.argv[3], copy=True)
"""


def checksums(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name.startswith("model")
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_killed_copy_leaves_only_a_hidden_folder_which_the_next_export_removes(make_tiny_model, tmp_path):
    source, outputs = save(make_tiny_model(), tmp_path / "model"), tmp_path / "outputs"
    before = checksums(source.folder())
    two_windows().save(tmp_path / "factors.json")
    arguments = [source.name, tmp_path / "factors.json", outputs / "out"]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    (hidden,) = names(outputs)
    assert hidden.startswith(".out.longrope-")
    (outputs / ".out.mine").mkdir()
    (outputs / ".other.longrope-12345678").mkdir()
    folder = export_folder(source, two_windows(), outputs / "out").folder
    assert names(outputs) == [".other.longrope-12345678", ".out.mine", "out"]
    assert checksums(folder) == checksums(source.folder()) == before


def test_folders_of_living_exports_stay(tmp_path):
    with whole_folder(tmp_path / "out") as first:
        (first / "a").write_text("1")
        other = whole_folder(tmp_path / "out")
        (other.__enter__() / "b").write_text("2")
        assert (first / "a").exists()
    with pytest.raises(RunExistsError):
        other.__exit__(None, None, None)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


def test_file_systems_without_locks_will_do(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(9, "Bad file descriptor")

    (tmp_path / ".out.longrope-12345678").mkdir()
    monkeypatch.setattr("fcntl.flock", no_locks)
    with whole_folder(tmp_path / "out") as written:
        (written / "a").write_text("1")
    assert names(tmp_path) == [".out.longrope-12345678", "out"]


def test_full_disk_leaves_nothing(make_tiny_model, tmp_path, monkeypatch):
    source = save(make_tiny_model(), tmp_path / "model")

    def full(path, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(OSError, match="No space left"):
        export_folder(source, two_windows(), tmp_path / "outputs" / "out", copy=True)
    assert names(tmp_path / "outputs") == []


def test_copied_weights_are_files_of_their_own(make_tiny_model, tmp_path):
    source = save(make_tiny_model(), tmp_path / "model")
    written = export_folder(source, two_windows(), tmp_path / "out", copy=True).folder / "model.safetensors"
    assert not os.path.samefile(written, source.folder() / "model.safetensors")
    before = checksums(source.folder())
    with written.open("r+b") as stream:
        stream.write(b"damage")
    assert checksums(source.folder()) == before


def test_config_only_writes_all_but_weights(make_tiny_model, tiny_tokenizer, tmp_path):
    source = save(make_tiny_model(), tmp_path / "model", tiny_tokenizer)
    whole = export_folder(source, two_windows(), tmp_path / "whole").folder
    light = export_folder(source, two_windows(), tmp_path / "light", config_only=True).folder
    assert names(light) == [name for name in names(whole) if name != "model.safetensors"]
    for name in names(light):
        if name != "README.md":
            assert (light / name).read_bytes() == (whole / name).read_bytes()


def test_sharded_weights_come_with_their_index(make_tiny_model, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "model", max_shard_size="100KB")
    before = checksums(tmp_path / "model")
    assert len(before) > 2
    folder = export_folder(ModelSource(str(tmp_path / "model")), two_windows(), tmp_path / "out").folder
    assert checksums(folder) == checksums(tmp_path / "model") == before
    light = export_folder(ModelSource(str(tmp_path / "model")), two_windows(), tmp_path / "light", config_only=True)
    assert checksums(light.folder) == {}


def test_incomplete_weights_are_refused(make_tiny_model, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "model", max_shard_size="100KB")
    first = min((tmp_path / "model").glob("*.safetensors"))
    first.unlink()
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="lacks the weights model-00001-of"):
            export_folder(ModelSource(str(tmp_path / "model")), two_windows(), tmp_path / "out")
        first.is_symlink() or first.symlink_to(tmp_path / "nowhere")  # as a download that broke off leaves it
    (tmp_path / "model" / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match="is not an index of safetensors"):
        export_folder(ModelSource(str(tmp_path / "model")), two_windows(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_refused(make_tiny_model, tmp_path):
    source = save(make_tiny_model(), tmp_path / "model")
    (source.folder() / "model.safetensors").rename(source.folder() / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"holds no \*\.safetensors weights") as refusal:
        export_folder(source, two_windows(), tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()
    light = export_folder(source, two_windows(), tmp_path / "out", config_only=True).folder
    assert not (light / "pytorch_model.bin").exists()


def test_generation_that_ended_at_the_old_window_ends_at_the_new(make_tiny_model, tmp_path):
    model = make_tiny_model()
    for length, expected in ((64, 256), (20, 20)):
        model.generation_config.max_length = length
        source = save(model, tmp_path / f"model{length}")
        folder = export_folder(source, two_windows(), tmp_path / f"out{length}").folder
        assert f'"max_length": {expected},' in (folder / "generation_config.json").read_text()


def test_generation_settings_in_the_config_of_an_older_model_stay(make_tiny_model, tmp_path):
    source = save(make_tiny_model(), tmp_path / "model")
    (source.folder() / "generation_config.json").unlink()
    config = source.folder() / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "repetition_penalty": 1.3, "max_length": 64}))
    folder = export_folder(source, two_windows(), tmp_path / "out").folder
    settings = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (settings.repetition_penalty, settings.max_length) == (1.3, 256)


def test_read_only_files_of_the_model_are_no_obstacle(make_tiny_model, tiny_tokenizer, tmp_path):
    source = save(make_tiny_model(), tmp_path / "model", tiny_tokenizer)
    for path in source.folder().iterdir():
        path.chmod(0o444)
    folder = export_folder(source, two_windows(), tmp_path / "out").folder
    assert '"model_max_length": 256' in (folder / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(("content", "said"), [("{", "is not valid JSON"), ("[1]", "holds list, expected an object")])
def test_broken_settings_are_one_line(make_tiny_model, tmp_path, name, content, said):
    source = save(make_tiny_model(), tmp_path / "model")
    (source.folder() / name).write_text(content)
    with pytest.raises(UnsupportedModelError, match=f"^{name} of the model {said}"):
        export_folder(source, two_windows(), tmp_path / "out")
    assert names(tmp_path) == ["model"]


def test_tokenizers_with_more_templates_keep_them(make_tiny_model, tmp_path):
    source = save(make_tiny_model(), tmp_path / "model")
    (source.folder() / "additional_chat_templates").mkdir()
    (source.folder() / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    folder = export_folder(source, two_windows(), tmp_path / "out").folder
    assert (folder / "additional_chat_templates" / "tool.jinja").read_text() == "{{ tools }}"


def test_permissions_are_those_of_any_new_folder(make_tiny_model, tmp_path):
    source = save(make_tiny_model(), tmp_path / "model")
    before = os.umask(0o077)
    try:
        folder = export_folder(source, two_windows(), tmp_path / "out").folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma2", "gemma3_text", "gpt_neox", "deepseek_v3"])
def test_exports_on_top_of_exports_keep_the_weights(make_tiny_model, tmp_path, model_type):
    source = save(make_tiny_model(model_type), tmp_path / "model")
    before = checksums(source.folder())
    first = export_folder(source, two_windows(model_type), tmp_path / "first")
    far = factors(model_type, 512, 2.0, attention_factor=1.15)
    second = export_folder(ModelSource(str(first.folder)), far, tmp_path / "second")
    assert second.schedule.describe() == "64, 256, 512"
    assert checksums(source.folder()) == checksums(first.folder) == checksums(second.folder) == before
