"""llama.cpp computes from our GGUF files what longrope measures: perplexities of the embedded model, to 0.5%.

``make test-engines`` builds llama.cpp and runs this.
"""

import math
from contextlib import contextmanager

import numpy as np
import pytest

from longrope.demo import model_folder
from longrope.demo.corpus import standard_library
from longrope.export.gguf import LONG, PLAIN, SHORT, export_gguf
from longrope.export.gguf_file import GGUFFile
from longrope.model.load import ModelSource
from longrope.model.score import perplexity, score_blocks
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.rope.policy import FactorSchedule, Window

pytestmark = pytest.mark.engines
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; run `make test-engines`")

IDENTITY = RopeFactors.identity(1e4, 64, 256)
FAR = yarn(IDENTITY, 2048)
# Short factors that are not all 1, so that leaving them out shows.
NEAR = yarn(IDENTITY, 512, attention_factor=FAR.attention_factor).replace(target_length=256)
SCHEDULE = FactorSchedule((Window(256, NEAR), Window(2048, FAR)))
SAME, OTHER = 0.005, 0.02


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from llama_converter import convert_llama

    return convert_llama(model_folder(), tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    return export_gguf(base, SCHEDULE, tmp_path_factory.mktemp("exported") / "out.gguf").path


@pytest.fixture(scope="module")
def model():
    return ModelSource(str(model_folder()), dtype="float32").load_model()


@pytest.fixture(scope="module")
def texts():
    """Token ids of two held-out documents: the first 2048 tokens of one, the first 200 of the other."""
    tokenizer = ModelSource(str(model_folder())).load_tokenizer()
    documents = (tokenizer(module.text, verbose=False)["input_ids"] for module in standard_library() if module.held_out)
    long = [ids for ids in (next(documents) for _ in range(50)) if len(ids) >= 2048]
    return {2048: long[0][:2048], 200: long[1][:200]}


@contextmanager
def opened(path, context):
    """The model in llama.cpp, all in float32."""
    llama = llama_cpp.Llama(
        str(path), n_ctx=context, n_threads=2, logits_all=True, type_k=0, type_v=0, flash_attn=False, verbose=False
    )
    try:
        yield llama
    finally:
        llama.close()


def in_llama_cpp(path, ids, context):
    """Perplexity of token ids in a context of so many tokens."""
    with opened(path, context) as llama:
        assert llama.n_ctx() == context
        llama.eval(ids)
        logits = llama.scores[: len(ids) - 1].astype(np.float64)
    targets = np.asarray(ids[1:])
    highest = logits.max(axis=1)
    totals = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return math.exp((totals - logits[np.arange(len(targets)), targets]).mean())


def ours(model, ids, *factors):
    return [perplexity(float(sums.sum()), len(ids) - 1) for sums in score_blocks(model, ids, factors)]


@pytest.mark.parametrize(
    ("length", "context", "used", "other"), [(2048, 2048, FAR, NEAR), (200, 256, NEAR, FAR)], ids=["long", "short"]
)
def test_perplexity_is_ours(exported, model, texts, length, context, used, other):
    ids = texts[length]
    theirs = in_llama_cpp(exported, ids, context)
    expected, *wrong = ours(model, ids, used, other, used.replace(attention_factor=1.0), IDENTITY)
    print(
        f"\n{length} tokens in a context of {context}: llama.cpp {theirs:.4f}, longrope {expected:.4f} "
        f"({theirs / expected - 1:+.4%}); the other list {wrong[0]:.4f}, no attention factor {wrong[1]:.4f}, "
        f"no factors {wrong[2]:.4f}"
    )
    assert abs(theirs / expected - 1) < SAME
    assert all(abs(theirs / each - 1) > OTHER for each in wrong), "the test could not tell the factors apart"


# What the exporter guards against


def agree(theirs, expected):
    print(f"\nllama.cpp {theirs:.4f}, longrope {expected:.4f} ({theirs / expected - 1:+.4%})")
    return abs(theirs / expected - 1) < SAME


def test_a_short_text_in_a_long_context_gets_the_long_list(exported, model, texts):
    assert agree(in_llama_cpp(exported, texts[200], 2048), *ours(model, texts[200], FAR))


def test_contexts_are_rounded_up_to_256(exported):
    with opened(exported, 257) as llama:
        assert llama.n_ctx() == 512


def test_factors_of_the_base_in_one_list_give_way(model, texts, tmp_path):
    from llama_converter import convert_llama

    own = IDENTITY.replace(lambdas=tuple(np.float32(NEAR.lambdas).tolist()))
    base = convert_llama(model_folder(), tmp_path / "base.gguf", {PLAIN: np.asarray(own.lambdas)})
    assert agree(in_llama_cpp(base, texts[200], 256), *ours(model, texts[200], own))
    exported = export_gguf(base, SCHEDULE, tmp_path / "exported.gguf").path
    assert agree(in_llama_cpp(exported, texts[200], 256), *ours(model, texts[200], NEAR))
    GGUFFile(exported).write_changed(tmp_path / "left.gguf", {}, {PLAIN: np.float32(own.lambdas)})
    with pytest.raises(ValueError, match="Failed to load"):
        in_llama_cpp(tmp_path / "left.gguf", texts[200], 256)


def test_a_scaling_factor_would_slow_every_pair_down_again(exported, model, texts, tmp_path):
    GGUFFile(exported).write_changed(tmp_path / "left.gguf", {"llama.rope.scaling.factor": 8.0}, {})
    twice = NEAR.replace(lambdas=tuple(8 * each for each in NEAR.lambdas))
    assert agree(in_llama_cpp(tmp_path / "left.gguf", texts[200], 256), *ours(model, texts[200], twice))


def test_the_type_without_lists_is_plain_rope(exported, model, texts, tmp_path):
    GGUFFile(exported).write_changed(tmp_path / "none.gguf", {}, {}, dropped={LONG, SHORT})
    plain = IDENTITY.replace(attention_factor=FAR.attention_factor)
    assert agree(in_llama_cpp(tmp_path / "none.gguf", texts[200], 256), *ours(model, texts[200], plain))


def test_shifting_cached_keys_multiplies_them_by_the_attention_factor_again(exported, texts, tmp_path):
    """Moving every position by the same amount must not matter; with an attention factor it does."""
    GGUFFile(exported).write_changed(tmp_path / "one.gguf", {"llama.rope.scaling.attn_factor": 1.0}, {})

    def next_logits(path, shift):
        with opened(path, 256) as llama:
            llama.eval(texts[200][:100])
            memory = llama_cpp.llama_get_memory(llama._ctx.ctx)
            llama_cpp.llama_memory_seq_add(memory, 0, 0, -1, shift)
            llama.n_tokens += shift
            llama.eval(texts[200][100:101])
            return llama.scores[llama.n_tokens - 1].copy()

    def change(path):
        return np.abs(next_logits(path, 10) - next_logits(path, 0)).max()

    print(f"\nlogits change by {change(exported):.4f}, with attention factor 1 by {change(tmp_path / 'one.gguf'):.6f}")
    assert change(tmp_path / "one.gguf") < 1e-3
    assert change(exported) > 0.1
