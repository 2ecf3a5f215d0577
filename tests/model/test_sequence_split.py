"""Samples over several processes: real ones, with gloo, that share a sample and score as one alone does."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import random_ids
from tiny_models import rotary_dim, tiny_config
from transformers import AutoModelForCausalLM

from longrope.exceptions import RunFailedError
from longrope.model import score, scoring_plan, split_model
from longrope.model.load import ModelSource
from longrope.model.score import score_blocks, score_tokens
from longrope.model.sequence_split import SequenceSplit
from longrope.model.split_model import peers_of
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

LENGTH = 500


@given(st.integers(1, 9), st.integers(1, 5000))
def test_every_position_is_one_process_s(size, length):
    parts = [part for rank in range(size) for part in SequenceSplit(rank, size).parts(length)]
    assert sorted(position for begin, end in parts for position in range(begin, end)) == list(range(length))


@given(st.integers(1, 9), st.integers(1000, 100000))
def test_all_have_the_same_work(size, length):
    """Keys that queries see, of all pairs."""
    work = [
        sum((end * (end + 1) - begin * (begin + 1)) / 2 for begin, end in SequenceSplit(rank, size).parts(length))
        for rank in range(size)
    ]
    assert max(work) <= 1.05 * min(work)


def candidates(model_type="llama"):
    plain = RopeFactors.identity(1e4, rotary_dim(model_type), 64)
    return [yarn(plain, LENGTH), plain.replace(target_length=LENGTH, n_hat=20)]


@contextlib.contextmanager
def opened(folder, model_type, sp):
    """A tiny model loaded alone, and over so many processes, in chunks of 100 tokens in this one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(tiny_config(model_type)).float().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring_plan, "CPU_CHUNK", 100)
        together = ModelSource(str(folder), sp=sp).load_model()
        try:
            yield ModelSource(str(folder)).load_model(), together
        finally:
            if peers_of(together) is not None:
                peers_of(together).close()


@pytest.fixture(scope="class")
def models(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("llama"), "llama", 2) as models:
        yield models


class TestTwoProcesses:
    @pytest.mark.parametrize("length", [LENGTH, LENGTH - 3, 60])
    def test_score_as_one_does(self, models, length):
        """Whole samples and from a position on; one of 60 tokens is too short to be split."""
        (alone, together), factors, tokens = models, candidates(), random_ids(length, seed=length)[0]
        np.testing.assert_allclose(
            score_blocks(together, tokens, factors), score_blocks(alone, tokens, factors), rtol=1e-6
        )
        for first in (1, length // 2, length - 1):
            np.testing.assert_allclose(
                score_tokens(together, tokens, factors[0], first),
                score_tokens(alone, tokens, factors[0], first),
                rtol=1e-4,
            )

    def test_each_has_a_share_of_the_residual_stream(self, models, monkeypatch):
        shares = []
        monkeypatch.setattr(
            score, "plan_scoring", lambda *sizes: shares.append(sizes[4]) or scoring_plan.ScoringPlan(100)
        )
        for model in models:
            score_blocks(model, random_ids(LENGTH)[0], candidates())
        assert shares == [1, 2]

    def test_do_their_own_parts_only(self, models):
        model, seen = models[1], Counter()
        hooks = [
            layer.mlp.register_forward_pre_hook(lambda module, args: seen.update({module: args[0].shape[1]}))
            for layer in model.model.layers
        ]
        score_blocks(model, random_ids(LENGTH)[0], candidates())
        for hook in hooks:
            hook.remove()
        assert list(seen.values()) == [LENGTH // 2] * 2

    @pytest.mark.parametrize("call", [0, 6])
    def test_may_run_out_of_memory_one_by_one(self, models, call):
        """Where one collects keys, and where it does all of the layer; the other keeps its chunks."""
        (alone, model), tokens, factors = models, random_ids(LENGTH)[0], candidates()
        expected = score_blocks(alone, tokens, factors)
        calls = iter(range(1000))

        def fail(*args):
            if next(calls) == call:
                raise torch.OutOfMemoryError("CUDA out of memory")

        hook = model.model.layers[1].self_attn.register_forward_pre_hook(fail)
        try:
            np.testing.assert_allclose(score_blocks(model, tokens, factors), expected, rtol=1e-6)
        finally:
            hook.remove()
        assert next(calls) > 8


def test_after_a_failure_the_model_scores_alone(tmp_path):
    """Of three processes, after two samples; the others wait for what will not come."""
    with opened(tmp_path, "gemma3_text", 3) as (alone, model):
        tokens, factors = random_ids(LENGTH)[0], candidates("gemma3_text")
        expected = score_blocks(alone, tokens, factors)
        np.testing.assert_allclose(score_blocks(model, tokens, factors), expected, rtol=1e-6)
        processes = peers_of(model)._processes

        def fail(*args):
            raise ValueError("no")

        hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="no"):
            score_blocks(model, tokens, factors)
        hook.remove()
        assert [each.returncode for each in processes] == [0, 0]
        assert peers_of(model) is None
        np.testing.assert_allclose(score_blocks(model, tokens, factors), expected, rtol=1e-6)


def test_a_process_that_ends_between_samples_is_told(tmp_path, monkeypatch):
    """Whatever notices it first: here nobody watches, and the next sample does."""
    monkeypatch.setattr(split_model, "_watch", lambda process, closing: None)
    with opened(tmp_path, "llama", 2) as (alone, model):
        tokens, factors = random_ids(LENGTH)[0], candidates()
        expected = score_blocks(alone, tokens, factors)
        np.testing.assert_allclose(score_blocks(model, tokens, factors), expected, rtol=1e-6)
        [process] = peers_of(model)._processes
        process.kill()
        process.wait()
        with pytest.raises(RunFailedError, match="ended with exit code -9"):
            score_blocks(model, tokens, factors)
        assert peers_of(model) is None
        np.testing.assert_allclose(score_blocks(model, tokens, factors), expected, rtol=1e-6)


def test_the_others_end_with_the_model(tmp_path):
    """And a model that is loaded after it may have its own."""
    with opened(tmp_path, "llama", 2) as (_, model):
        [process] = peers_of(model)._processes
    assert process.returncode == 0
    together = ModelSource(str(tmp_path), sp=2).load_model()
    [process] = peers_of(together)._processes
    del together
    gc.collect()
    assert process.returncode == 0
    assert not torch.distributed.is_initialized()


# --- Processes that end ---

SCRIPT = """
import sys
import numpy as np
from longrope.model import scoring_plan
from longrope.model.load import ModelSource
from longrope.model.score import score_tokens
from longrope.model.split_model import peers_of
from longrope.rope.factors import RopeFactors

scoring_plan.CPU_CHUNK = 100
model = ModelSource(sys.argv[1], sp=2).load_model()
factors = RopeFactors.identity(1e4, 16, 64)
score_tokens(model, np.arange(3, 103).repeat(3), factors)
print(peers_of(model)._processes[0].pid, flush=True)
while True:
    score_tokens(model, np.arange(3, 103).repeat(3), factors)
"""


@pytest.fixture
def running(make_tiny_model, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "model")
    (tmp_path / "temporary").mkdir()
    first = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    other = psutil.Process(int(first.stdout.readline()))
    yield first, other
    for each in (first, other):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    first.communicate()


def test_the_others_end_with_the_first_and_leave_nothing(running, tmp_path):
    first, other = running
    assert list((tmp_path / "temporary").iterdir())
    os.kill(first.pid, signal.SIGKILL)
    other.wait(60)
    assert not other.is_running()
    assert not list((tmp_path / "temporary").iterdir())


def test_the_first_ends_when_another_does_and_says_so(running):
    first, other = running
    os.kill(other.pid, signal.SIGKILL)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "a process that scored samples with this one ended with exit code -9" in errors
