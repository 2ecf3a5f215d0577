"""Generation on a model with windows: what a cache, a batch, beams or chunks do must not show in the text."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from model_cases import EXTENDED, LONG, ORIGINAL, SHORT, longrope_model, random_ids
from tiny_models import rotary_dim
from transformers import GenerationConfig, StaticCache
from transformers.utils import logging

from longrope.exceptions import RunFailedError, SettingsError
from longrope.model.attach import attach, attached
from longrope.model.rope_config import read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

MIDDLE = 96
GREEDY = {"do_sample": False, "eos_token_id": None}


def three_windows(model_type="llama"):
    """Windows of 64, 96 and 256 tokens, the last two with n_hat."""
    pairs = rotary_dim(model_type) // 2

    def factors(lambdas, n_hat, target):
        return RopeFactors(tuple(lambdas[:pairs]), 1e4, 2 * pairs, ORIGINAL, target, n_hat, attention_factor=1.1)

    return FactorSchedule(
        (
            Window(ORIGINAL, factors(SHORT, 0, ORIGINAL)),
            Window(MIDDLE, factors([1, *LONG], 4, MIDDLE)),
            Window(EXTENDED, factors(LONG, 8, EXTENDED)),
        )
    )


def generate(model, ids, mask=None, new=64, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, **{**GREEDY, "max_new_tokens": new, **options})


def left_padded(lengths, seed=0):
    """Prompts of several lengths and their mask, each (rows, longest)."""
    ids = random_ids(max(lengths), rows=len(lengths), seed=seed)
    mask = torch.stack([(torch.arange(ids.shape[1]) >= ids.shape[1] - length).long() for length in lengths])
    return ids.masked_fill(mask == 0, 0), mask


def passes(model):
    """The number of new tokens of every forward pass from now on."""
    sizes = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return sizes


# The cache


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "gemma3_text"])
def test_64_tokens_across_two_boundaries_equal_no_cache(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    ids = random_ids(ORIGINAL - 10)
    with attached(model, three_windows(model_type)):
        sizes = passes(model)
        cached = generate(model, ids)
        assert [size for size in sizes if size > 1] == [ORIGINAL - 10, ORIGINAL + 1, MIDDLE + 1]  # once a boundary
        assert len(sizes) == 64
        assert cached.tolist() == generate(model, ids, use_cache=False).tolist()


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "gemma3_text"])
def test_rows_of_a_left_padded_batch_cross_at_their_own_steps(make_tiny_model, model_type):
    model = make_tiny_model(model_type)
    lengths = [ORIGINAL - 4, 20, ORIGINAL - 30]  # the first crosses twice, the second not until its 44th token
    ids, mask = left_padded(lengths)
    with attached(model, three_windows(model_type)):
        together = generate(model, ids, mask)
        assert together.tolist() == generate(model, ids, mask, use_cache=False).tolist()
        for row, length in enumerate(lengths):
            alone = generate(model, ids[row : row + 1, -length:])
            assert together[row, -64:].tolist() == alone[0, -64:].tolist()


@pytest.mark.parametrize("prompt", [20, 100])
@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_inside_a_window_as_transformers(make_tiny_model, model_type, prompt):
    scaled = longrope_model(make_tiny_model, model_type, attention_factor=1.1)
    plain = make_tiny_model(model_type)
    ids = random_ids(prompt)
    with attached(plain, read_rope(scaled.config).policy):
        assert generate(plain, ids, new=12).tolist() == generate(scaled, ids, new=12).tolist()


def test_what_transformers_itself_does_across_the_boundary_is_something_else(make_tiny_model):
    """The reason for all this: llama in plain transformers goes on with keys of the short factors."""
    scaled = longrope_model(make_tiny_model, attention_factor=1.1)
    ids = random_ids(ORIGINAL - 4)
    stale = generate(scaled, ids).tolist()
    assert stale != generate(scaled, ids, use_cache=False).tolist()
    with attached(make_tiny_model(), read_rope(scaled.config).policy) as attachment:
        assert generate(attachment._model, ids).tolist() == generate(scaled, ids, use_cache=False).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "top_k": 20, "temperature": 0.8},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_sampling_and_beams_equal_no_cache(make_tiny_model, options):
    model = make_tiny_model()
    ids, mask = left_padded([ORIGINAL - 4, 30])

    def run(**more):
        torch.manual_seed(0)
        return generate(model, ids, mask, new=40, **{**options, **more}).tolist()

    with attached(model, three_windows()):
        assert run() == run(use_cache=False)


@pytest.mark.parametrize("window", ["recompute", "reserve"])
def test_static_cache(make_tiny_model, window):
    model = make_tiny_model()
    ids, mask = left_padded([ORIGINAL - 4, 30])
    with attached(model, three_windows(), window=window):
        expected = generate(model, ids, mask)
        assert generate(model, ids, mask, cache_implementation="static").tolist() == expected.tolist()
        own = StaticCache(config=model.config, max_cache_len=EXTENDED)
        assert generate(model, ids, mask, past_key_values=own).tolist() == expected.tolist()


@pytest.mark.parametrize("window", ["recompute", "reserve"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_prompts_in_chunks_have_the_window_of_the_whole(make_tiny_model, model_type, window):
    model = make_tiny_model(model_type)
    ids, mask = left_padded([MIDDLE - 4, 30])
    with attached(model, three_windows(model_type), window=window):
        expected = generate(model, ids, mask, new=20)
        assert generate(model, ids, mask, new=20, prefill_chunk_size=32).tolist() == expected.tolist()


def test_crossing_is_computed_in_chunks_as_the_prompt_was(make_tiny_model):
    model = make_tiny_model()
    ids, mask = left_padded([ORIGINAL - 4, 30])
    with attached(model, three_windows()):
        expected = generate(model, ids, mask, new=40)
        sizes = passes(model)
        assert generate(model, ids, mask, new=40, prefill_chunk_size=32).tolist() == expected.tolist()
        assert max(sizes) == 32


def test_chunks_do_not_change_what_is_reserved(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(ORIGINAL - 4)
    options = {**GREEDY, "attention_mask": torch.ones_like(ids), "max_length": ORIGINAL + 16}  # the second window
    with attached(model, three_windows(), window="reserve"):
        expected = model.generate(ids, **options)
        assert model.generate(ids, prefill_chunk_size=16, **options).tolist() == expected.tolist()


def test_batch_in_chunks_needs_its_mask(make_tiny_model):
    model = make_tiny_model()
    with attached(model, three_windows()):
        with pytest.raises(SettingsError, match="give attention_mask"):
            model.generate(random_ids(40, rows=2), prefill_chunk_size=16, max_new_tokens=2)
        assert model.generate(prefill_chunk_size=16, max_new_tokens=2).shape == (1, 3)  # no prompt, no lengths to tell


# Several turns over one cache


@pytest.mark.parametrize("more", [{}, {"prefill_chunk_size": 8}], ids=["whole", "chunks"])
@pytest.mark.parametrize("copied", [False, True])
def test_second_turn_across_the_boundary(make_tiny_model, copied, more):
    model = make_tiny_model()
    with attached(model, three_windows()):
        first = generate(model, random_ids(40), new=10, return_dict_in_generate=True)
        cache = copy.deepcopy(first.past_key_values) if copied else first.past_key_values
        turn = torch.cat([first.sequences, random_ids(20, seed=1)], dim=-1)
        second = generate(model, turn, new=10, past_key_values=cache, **more)
        assert second.tolist() == generate(model, turn, new=10).tolist()
        assert cache.get_seq_length() == second.shape[1] - 1  # the cache that was given is the one that grew


def test_second_turn_after_a_reserved_one(make_tiny_model):
    """The keys of the first turn have the factors of a window that its tokens alone would not have chosen."""
    model = make_tiny_model()
    attachment = attach(model, three_windows(), window="reserve")
    first = generate(model, random_ids(40), new=30, return_dict_in_generate=True, eos_token_id=[*range(128)])
    assert first.sequences.shape[1] == 41  # ended early
    turn = torch.cat([first.sequences, random_ids(5, seed=1)], dim=-1)
    expected = generate(model, turn, new=10)
    assert generate(model, turn, new=10, past_key_values=first.past_key_values).tolist() == expected.tolist()
    attachment.detach()


def test_second_turn_of_new_tokens_alone_cannot_cross(make_tiny_model):
    model = make_tiny_model()
    with attached(model, three_windows()):
        first = generate(model, random_ids(50), new=4, return_dict_in_generate=True)
        mask = torch.ones(1, 74, dtype=torch.long)
        with pytest.raises(RunFailedError, match="give generate\\(\\) all its token ids"):
            generate(model, random_ids(20, seed=1), mask, new=4, past_key_values=first.past_key_values)


def test_prompt_of_embeddings(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(ORIGINAL - 4)
    embeddings = model.get_input_embeddings()(ids).detach()
    options = {**GREEDY, "attention_mask": torch.ones_like(ids)}
    with attached(model, three_windows()):
        inside = model.generate(inputs_embeds=embeddings, max_new_tokens=4, **options)
        assert inside[0].tolist() == generate(model, ids, new=4)[0, ORIGINAL - 4 :].tolist()
        across = model.generate(inputs_embeds=embeddings, max_new_tokens=40, **options)
        assert across[0].tolist() == generate(model, ids, new=40)[0, ORIGINAL - 4 :].tolist()
        others = model.generate(
            random_ids(ORIGINAL - 4, seed=1), inputs_embeds=embeddings, max_new_tokens=40, **options
        )
        assert others[0, ORIGINAL - 4 :].tolist() == across[0].tolist()  # token ids beside them are not computed
    with attached(model, three_windows(), window="reserve"):
        across = model.generate(inputs_embeds=embeddings, max_new_tokens=20, **options)
        assert across[0].tolist() == generate(model, ids, new=20)[0, ORIGINAL - 4 :].tolist()


# Reserving


def test_reserved_windows_hold_prompt_and_new_tokens(make_tiny_model):
    model = make_tiny_model()
    schedule = three_windows()
    lengths = [ORIGINAL - 4, 20]
    ids, mask = left_padded(lengths)
    with attached(model, schedule, window="reserve"):
        sizes = passes(model)
        together = generate(model, ids, mask, new=40)
        assert sizes == [ORIGINAL - 4] + [1] * 39  # nothing is computed twice
        assert generate(model, ids, mask, new=40, num_beams=2).shape == together.shape
    for row, (length, factors) in enumerate(zip(lengths, [schedule.windows[2], schedule.windows[0]], strict=True)):
        with attached(model, factors.factors):
            alone = generate(model, ids[row : row + 1, -length:], new=40)
        assert together[row, -40:].tolist() == alone[0, -40:].tolist()


def test_reserved_window_by_max_length(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(40)
    with attached(model, three_windows(), window="reserve"):
        by_length = model.generate(ids, attention_mask=torch.ones_like(ids), max_length=80, **GREEDY)
        assert by_length.tolist() == generate(model, ids, new=40).tolist()
        model.generation_config.max_new_tokens = 40
        assert model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY).tolist() == by_length.tolist()


def test_reserving_needs_to_know_how_much(make_tiny_model):
    model = make_tiny_model()
    with (
        attached(model, three_windows(), window="reserve"),
        pytest.raises(SettingsError, match="give generate\\(\\) max_new_tokens"),
    ):
        model.generate(random_ids(10))


def test_assisted_decoding_is_refused_or_reserved(make_tiny_model):
    model, assistant = make_tiny_model(), make_tiny_model(seed=1)
    ids = random_ids(ORIGINAL - 4)
    assisted = ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3})
    with attached(model, three_windows()):
        for options in assisted:
            with pytest.raises(SettingsError, match="use window='reserve'"):
                generate(model, ids, **options)
    with attached(model, three_windows(), window="reserve"):
        expected = generate(model, ids, new=20)
        for options in (*assisted, {"assistant_early_exit": 1}):
            assert generate(model, ids, new=20, **options).tolist() == expected.tolist()


def test_continuous_batching_is_refused_unless_one_window_holds(make_tiny_model):
    """Its passes hold tokens of several texts, and attention kernels that need no mask would hide that."""
    model = make_tiny_model()
    with attached(model, three_windows()) as attachment:
        with pytest.raises(SettingsError, match="continuous batching"):
            model.generate_batch([[5, 6, 7]])
        attachment.pin(100)
        assert model.init_continuous_batching() is not None
    assert "init_continuous_batching" not in vars(model)


def test_unknown_crossing_is_refused_and_nothing_is_changed(make_tiny_model):
    model = make_tiny_model()
    rotary = model.model.rotary_emb
    with pytest.raises(SettingsError, match="window 'restart' is unknown; give recompute or reserve"):
        attach(model, three_windows(), window="restart")
    assert model.model.rotary_emb is rotary


# Living together with others


def test_no_warning_of_the_old_window_and_no_change_of_the_config(make_tiny_model, caplog):
    logging.warning_once.cache_clear()  # what another test has seen is said again
    model = make_tiny_model()
    with attached(model, three_windows()):
        generate(model, random_ids(ORIGINAL - 4), new=12)
        assert "predefined maximum length" not in caplog.text
        assert model.config.max_position_embeddings == ORIGINAL
        generate(model, random_ids(EXTENDED - 4), new=12)
        assert "predefined maximum length (256)" in caplog.text


@pytest.mark.parametrize("window", ["recompute", "reserve"])
def test_settings_in_an_object(make_tiny_model, window, caplog):
    model = make_tiny_model()
    ids = random_ids(ORIGINAL - 4)
    settings = GenerationConfig(max_new_tokens=12, do_sample=False)
    with attached(model, three_windows(), window=window):
        expected = generate(model, ids, new=12, eos_token_id=2)
        assert model.generate(ids, settings, attention_mask=torch.ones_like(ids)).tolist() == expected.tolist()
        assert model.generate(ids, generation_config=settings).tolist() == expected.tolist()
    assert settings.disable_compile is None
    assert "deprecated" not in caplog.text


def test_nothing_is_compiled(make_tiny_model):
    """With a static cache on a GPU transformers would, and the window of a step is decided in Python."""
    model = make_tiny_model()
    seen = []

    def decode(model, input_ids, generation_config, **others):
        seen.append(generation_config.disable_compile)
        return input_ids

    with attached(model, three_windows()):
        model.generate(random_ids(10), max_new_tokens=2, custom_generate=decode)
        model.generate(random_ids(10), GenerationConfig(max_new_tokens=2), custom_generate=decode)
    assert seen == [True, True]


def test_a_failed_generation_leaves_nothing_behind(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(ORIGINAL - 4)
    with attached(model, three_windows(), window="reserve"):
        with pytest.raises(IndexError):
            generate(model, ids + 128)
        expected = generate(model, random_ids(20), new=8).tolist()
    with attached(model, three_windows(), window="reserve"):
        assert generate(model, random_ids(20), new=8).tolist() == expected


def test_pinned_length_holds_while_generating(make_tiny_model):
    model = make_tiny_model()
    ids = random_ids(ORIGINAL - 4)
    with attached(model, three_windows(), length=200):
        pinned = generate(model, ids, new=12)
    with attached(model, three_windows().windows[-1].factors):
        assert pinned.tolist() == generate(model, ids, new=12).tolist()


def test_threads_take_turns(make_tiny_model):
    model = make_tiny_model()
    prompts = [random_ids(length, seed=length) for length in (ORIGINAL - 4, 20, 70)]
    with attached(model, three_windows()), ThreadPoolExecutor(3) as threads:
        expected = [generate(model, ids, new=20).tolist() for ids in prompts]
        together = threads.map(lambda ids: generate(model, ids, new=20).tolist(), prompts)
        assert list(together) == expected


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_the_model_is_a_model_of_its_own(make_tiny_model, copied):
    model, other = make_tiny_model(), make_tiny_model(seed=1)
    ids = random_ids(ORIGINAL - 4)
    with attached(other, three_windows()):
        expected = generate(other, ids, new=12).tolist()
    with attached(model, three_windows()) as attachment:
        model.longrope = attachment
        own = generate(model, ids, new=12).tolist()
        twin = copied(model)
        twin.load_state_dict(other.state_dict())
        assert generate(twin, ids, new=12).tolist() == expected
        twin.longrope.detach()
        assert not {"generate", "prepare_inputs_for_generation"} & vars(twin).keys()
        assert generate(model, ids, new=12).tolist() == own


def test_methods_that_others_put_on_the_model_stay(make_tiny_model):
    model = make_tiny_model()
    calls = []

    def prepare(*args, **kwargs):
        calls.append(args)
        return type(model).prepare_inputs_for_generation(model, *args, **kwargs)

    model.prepare_inputs_for_generation = prepare
    with attached(model, three_windows()):
        generate(model, random_ids(10), new=2)
    assert calls
    assert model.prepare_inputs_for_generation is prepare
    assert "generate" not in vars(model)
