from __future__ import annotations

import json
from itertools import islice

import pytest
import torch

from longrope.data.mixture import Mixture, Source
from longrope.data.segment_dataset import SegmentDataset, segment_loader
from longrope.data.segments import IGNORED, SegmentStream
from longrope.exceptions import SettingsError

LENGTH, GLOBAL = 48, 8


@pytest.fixture
def make_stream(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    texts = [f"the river {index} runs to the sea " * (1 + index % 5) for index in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return lambda: SegmentStream(Mixture(sources=(Source(name="a", path=path),)), tokenizer, LENGTH, 0)


def batches(stream, count, **options):
    return list(islice(SegmentDataset(stream, global_batch=GLOBAL, **options), count))


@pytest.mark.parametrize(("world", "micro_batch", "sp"), [(1, 1, 1), (1, 8, 1), (2, 2, 1), (4, 1, 2), (2, 1, 4)])
def test_processes_share_the_segments_of_a_step(make_stream, world, micro_batch, sp):
    steps = 2
    expected = list(islice(make_stream(), steps * GLOBAL))
    micro_steps = GLOBAL // (world * micro_batch)
    found = [
        [
            batches(
                make_stream(), steps * micro_steps, rank=r, world=world, micro_batch=micro_batch, sp_rank=s, sp_size=sp
            )
            for s in range(sp)
        ]
        for r in range(world)
    ]
    for index, segment in enumerate(expected):
        step, within = divmod(index, GLOBAL)
        rank, row = within // micro_batch % world, within % micro_batch
        micro_step = step * micro_steps + within // (micro_batch * world)
        shards = [found[rank][s][micro_step] for s in range(sp)]
        joined = {
            name: torch.cat([shard[name][row] for shard in shards]).tolist()
            for name in ("input_ids", "position_ids", "shift_labels")
        }
        assert joined["input_ids"] == segment.tokens.tolist()
        assert joined["position_ids"] == list(range(LENGTH))
        assert joined["shift_labels"] == [*segment.labels[1:].tolist(), IGNORED]
    for of_rank in found:
        for shards in of_rank:
            for step in range(steps):
                members = shards[step * micro_steps : (step + 1) * micro_steps]
                labels = [s.labels[1:] for s in expected[step * GLOBAL : (step + 1) * GLOBAL]]
                counted = sum(int((part != IGNORED).sum()) for part in labels)
                assert all(batch["num_items"] == counted for batch in members)
                assert ["stream" in batch for batch in members] == [False] * (micro_steps - 1) + [True]
                assert members[-1]["stream"]["segments"] == (step + 1) * GLOBAL
                shape = (micro_batch, LENGTH // sp)
                assert all(batch["shift_labels"].shape == shape for batch in members)
                assert all(batch["input_ids"].dtype == torch.int64 for batch in members)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_hands_them_on_and_resumes(make_stream, workers):
    dataset = SegmentDataset(make_stream(), global_batch=4, micro_batch=2, rank=1, world=2)
    plain = list(islice(dataset, 4))
    loaded = list(islice(segment_loader(dataset, workers=workers), 4))
    stream = make_stream()
    stream.load_state_dict(json.loads(json.dumps(loaded[1]["stream"])))
    resumed = list(islice(segment_loader(SegmentDataset(stream, global_batch=4, micro_batch=2, rank=1, world=2)), 2))
    for one, other in zip([*plain, *plain[2:]], [*loaded, *resumed], strict=True):
        assert one.keys() == other.keys()
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["shift_labels"], other["shift_labels"])
        assert one["stream"] == other["stream"]


def test_it_begins_again_where_it_began(make_stream):
    dataset = SegmentDataset(make_stream(), global_batch=2)
    first = [batch["input_ids"].tolist() for batch in islice(dataset, 3)]
    assert [batch["input_ids"].tolist() for batch in islice(dataset, 3)] == first


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"global_batch": 6, "world": 4}, "give 4 or 8"),
        ({"global_batch": 6, "world": 2, "micro_batch": 2}, "give 4 or 8"),
        ({"global_batch": 2, "world": 4}, "give 4, or another multiple of 4"),
        ({"sp_size": 5}, "48 cannot be cut into 5 equal shards"),
    ],
)
def test_what_cannot_be_divided(make_stream, options, expected):
    with pytest.raises(SettingsError, match=expected):
        SegmentDataset(make_stream(), **options)


@pytest.mark.parametrize(("world", "micro_batch", "sp"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (4, 1, 3)])
def test_windows_have_their_turns_whatever_the_processes(make_stream, world, micro_batch, sp):
    windows, steps = (8, LENGTH, 4 * LENGTH), 3
    micro_steps = GLOBAL // (world * micro_batch)
    found = {
        (r, s): batches(
            make_stream(),
            steps * micro_steps,
            rank=r,
            world=world,
            micro_batch=micro_batch,
            sp_rank=s,
            sp_size=sp,
            windows=windows,
        )
        for r in range(world)
        for s in range(sp)
    }
    stream = make_stream()
    tokens = dict.fromkeys(windows, 0)
    for step in range(steps):
        size = GLOBAL // micro_batch
        turns = sorted(turn % 3 for turn in range(step * size, (step + 1) * size))
        counted = 0
        for index, turn in enumerate(turns):
            window = windows[turn]
            length = min(window, LENGTH)
            expected = [stream.take(length) for _ in range(micro_batch * LENGTH // length)]
            counted += sum(int((segment.labels[1:] != IGNORED).sum()) for segment in expected)
            shards = [found[index % world, s][step * micro_steps + index // world] for s in range(sp)]
            joined = {
                name: torch.cat([shard[name] for shard in shards], dim=0 if window < LENGTH else 1)
                for name in ("input_ids", "position_ids", "shift_labels")
            }
            assert {shard["window"] for shard in shards} == {window}
            assert joined["input_ids"].tolist() == [segment.tokens.tolist() for segment in expected]
            assert joined["position_ids"].tolist() == [list(range(length))] * len(expected)
            assert joined["shift_labels"].tolist() == [[*segment.labels[1:].tolist(), IGNORED] for segment in expected]
            tokens[window] += joined["input_ids"].numel()
        for members in found.values():
            own = members[step * micro_steps : (step + 1) * micro_steps]
            assert {batch["num_items"] for batch in own} == {counted}
            assert own[-1]["stream"] == stream.state_dict()
    if GLOBAL // micro_batch * steps % 3 == 0:
        assert set(tokens.values()) == {steps * GLOBAL * LENGTH // 3}


def test_windows_go_on_with_their_turns(make_stream):
    options = {"global_batch": 1, "windows": (8, LENGTH, 16)}
    whole = list(islice(SegmentDataset(make_stream(), **options), 5))
    assert [batch["window"] for batch in whole] == [8, LENGTH, 16, 8, LENGTH]
    stream = make_stream()
    stream.load_state_dict(json.loads(json.dumps(whole[1]["stream"])))
    resumed = list(islice(SegmentDataset(stream, first_step=2, **options), 3))
    for one, other in zip(whole[2:], resumed, strict=True):
        assert one["window"] == other["window"]
        assert torch.equal(one["input_ids"], other["input_ids"])


def test_more_than_one_loader_worker_is_refused(make_stream):
    loader = torch.utils.data.DataLoader(SegmentDataset(make_stream()), batch_size=None, num_workers=2)
    with pytest.raises(SettingsError, match="at most 1 loader worker"):
        next(iter(loader))
