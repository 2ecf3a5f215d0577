"""Score a sample: its negative log-likelihood in blocks of 256 tokens under given factors.

The logits of a long sample never exist as a whole. Hidden states go through the output projection a slice at a time,
and each slice is reduced to sums before the next is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from longrope.exceptions import RunFailedError
from longrope.model.architectures import architecture_for
from longrope.model.attach import Attachment, attached
from longrope.model.layer_by_layer import LEAST_CHUNK, LayerByLayer
from longrope.model.memory_retries import Parts, free_unused, is_out_of_memory, may_retry
from longrope.model.offloading import computes_on
from longrope.model.scoring_plan import ScoringPlan, plan_scoring
from longrope.model.sequence_split import SequenceSplit
from longrope.model.split_model import Request, peers_of
from longrope.rope.factors import RopeFactors
from longrope.rope.rotary import Mode

BLOCK = 256
LEAST_SLICE = 16
"""Positions whose logits exist at a time, at least; running out of memory with so few is an error."""
# Elements of one slice of float32 logits: 128 MiB.
_LOGITS = 1 << 25


def score_blocks(
    model: Any,
    tokens: Sequence[int] | npt.NDArray[Any] | torch.Tensor,
    factors: Sequence[RopeFactors],
    mode: Mode = "exact",
    attachment: Attachment | None = None,
    first: int = 1,
) -> npt.NDArray[np.float64]:
    """NLL sums of a sample's blocks under each of several factors.

    The token at position t (1 <= t < T) is predicted from those before it and counts into block ``t // 256``, so the
    first block holds 255 predictions and the perplexity of a prefix of 256 k tokens is that of the first k blocks.

    Args:
        model: a causal language model without a policy attached, or with ``attachment``.
        tokens: token ids (T,), T >= 2.
        factors: C factors, scored together in one batch.
        mode: see :func:`longrope.model.attach.attach`.
        attachment: what is attached to the model already and shall stay; it is left unpinned.
        first: position of the first token that counts, at least 1.

    Returns:
        NLL sums in nats, float64, (C, ceil(T / 256)).
    """
    nll = _nll(model, tokens, factors, mode, first, attachment)
    sums = torch.zeros(len(factors), math.ceil(len(tokens) / BLOCK), dtype=torch.float64)
    sums.index_add_(1, torch.arange(first, len(tokens)) // BLOCK, nll)
    return sums.numpy()


def score_tokens(
    model: Any,
    tokens: Sequence[int] | npt.NDArray[Any] | torch.Tensor,
    factors: RopeFactors,
    first: int = 1,
    mode: Mode = "exact",
) -> npt.NDArray[np.float64]:
    """NLL of each token from position ``first`` on, given all before it.

    Args:
        model: a causal language model without a policy attached.
        tokens: token ids (T,), T >= 2.
        factors: for the full length T.
        first: position of the first token that is predicted, at least 1.
        mode: see :func:`longrope.model.attach.attach`.

    Returns:
        Nats, float64, (T - first,).
    """
    assert 1 <= first < len(tokens)
    return _nll(model, tokens, [factors], mode, first)[0].numpy()


def score_continuations(
    model: Any,
    texts: Sequence[Sequence[int]],
    continuations: Sequence[tuple[int, Sequence[int]]],
    factors: RopeFactors,
    length: int,
) -> list[tuple[float, bool]]:
    """How likely each continuation is after its text; logits exist for the tokens of continuations only.

    Args:
        model: a causal language model without a policy attached.
        texts: token ids of B inputs, which may differ in length: each a context and all of a continuation but its
            last token.
        continuations: the text's number and the token ids that its last positions predict, as many as there are.
        factors: for the full length of every text.
        length: tokens of the longest sequence in all, the last token of its continuation included.

    Returns:
        Of each continuation: log-likelihood in nats, and whether greedy decoding would have given all of its tokens.
    """
    architecture = architecture_for(model.config)
    decoder = architecture.decoder_of(model)
    longest = max(len(text) for text in texts)
    # Padding on the right is seen by no token before it, so that no mask is needed.
    padded = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    counts = [len(tokens) for _, tokens in continuations]
    with torch.inference_mode(), attached(model, factors, length=length):
        batch = padded.to(computes_on(decoder.get_input_embeddings()))
        hidden = decoder(input_ids=batch, use_cache=False).last_hidden_state  # (B, T, D)
        wanted = torch.cat(
            [hidden[row, len(texts[row]) - len(tokens) : len(texts[row])] for row, tokens in continuations]
        )  # (N, D)
        targets = torch.cat([torch.tensor(tokens, dtype=torch.long) for _, tokens in continuations])  # (N,)
        nll, greedy = [], []
        step = slice_length(1, model.config.vocab_size)
        for start in range(0, len(targets), step):
            logits = architecture.logits(model, wanted[None, start : start + step])[0].float()  # (n, V)
            expected = targets[start : start + step].to(logits.device)
            nll.append(functional.cross_entropy(logits, expected, reduction="none").cpu().double())
            greedy.append((logits.argmax(dim=-1) == expected).cpu())
            del logits
    sums = [-float(part.sum()) for part in torch.cat(nll).split(counts)]
    return list(zip(sums, (bool(part.all()) for part in torch.cat(greedy).split(counts)), strict=True))


def _nll(
    model: Any,
    tokens: Sequence[int] | npt.NDArray[Any] | torch.Tensor,
    factors: Sequence[RopeFactors],
    mode: Mode,
    first: int,
    attachment: Attachment | None = None,
) -> torch.Tensor:
    """NLL of every token from ``first`` on under each of the factors, (C, T - first).

    In float64 on the CPU, where sums have one order on every run, whatever the device.
    """
    ids = np.asarray(tokens).astype(np.int64)
    assert len(ids) >= 2, "a sample needs at least two tokens"
    peers = peers_of(model)
    decoder = architecture_for(model.config).decoder_of(model)
    plan = plan_scoring(model, decoder, len(factors), len(ids), 1 if peers is None else peers.place.size)
    request = Request(ids, tuple(factors), mode, first, plan, torch.get_num_threads())
    if peers is None or len(ids) <= plan.chunk:
        return nll_of_own_parts(model, request, None, attachment)
    try:
        peers.announce(request)
        return nll_of_own_parts(model, request, peers.place, attachment)
    except BaseException as error:
        peers.abandon()  # they wait for what will not come
        if peers.failure is not None:
            raise RunFailedError(peers.failure) from error
        raise


def nll_of_own_parts(
    model: Any, request: Request, split: SequenceSplit | None, attachment: Attachment | None = None
) -> torch.Tensor:
    """The result of a request, which all processes of a split compute together; no logits exist as a whole."""
    architecture = architecture_for(model.config)
    decoder = architecture.decoder_of(model)
    length, count, first = len(request.tokens), len(request.factors), request.first
    device = computes_on(decoder.get_input_embeddings())
    batch = torch.from_numpy(request.tokens).to(device).expand(count, length)  # (C, T)
    found = torch.zeros(count, length - first, dtype=torch.float64)
    attaching = (
        attached(model, request.factors[0], mode=request.mode) if attachment is None else _unpinned_after(attachment)
    )
    with torch.inference_mode(), attaching as attachment:
        attachment.pin_rows(request.factors, length)

        def losses(hidden: torch.Tensor, begin: int, start: int, stop: int) -> torch.Tensor:
            logits = architecture.logits(model, hidden[:, start - begin : stop - begin]).float()  # (C, n, V)
            targets = batch[:, start + 1 : stop + 1].to(logits.device)  # (C, n)
            nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            return nll.view(count, -1).cpu().double()

        slices = Parts(slice_length(count, model.config.vocab_size), LEAST_SLICE, may_retry(model))
        for begin, hidden in _final_hidden(decoder, batch, first - 1, request.plan, split):
            ends = max(begin, first - 1), min(begin + hidden.shape[1], length - 1)
            for start, nll in slices.over(*ends, partial(losses, hidden, begin)):
                found[:, start + 1 - first : start + 1 - first + nll.shape[1]] = nll
    if split is not None:
        split.sum(found)
    return found


def _final_hidden(
    decoder: Any, batch: torch.Tensor, first: int, plan: ScoringPlan, split: SequenceSplit | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Hidden states from the position ``first`` on, or from one before it: where they start, and (C, n, D)."""
    chunk, length = plan.chunk, batch.shape[1]
    if length <= chunk:
        hidden = _at_once(decoder, batch)
        if hidden is not None:
            yield 0, hidden
            return
        chunk = length // 2
    yield from LayerByLayer(decoder, batch, chunk, plan.on_host, split).run(first)


def _at_once(decoder: Any, batch: torch.Tensor) -> torch.Tensor | None:
    """Hidden states (C, T, D); None where there is no memory for all positions at a time."""
    try:
        hidden: torch.Tensor = decoder(input_ids=batch, use_cache=False).last_hidden_state
        return hidden
    except RuntimeError as error:
        if not is_out_of_memory(error) or batch.shape[1] <= LEAST_CHUNK or not may_retry(decoder):
            raise
    free_unused()
    return None


def perplexity(nll: float, tokens: int) -> float:
    """exp(total NLL / predicted tokens); infinite where that overflows."""
    mean = nll / tokens
    return math.exp(mean) if mean < 700 else math.inf


@contextmanager
def _unpinned_after(attachment: Attachment) -> Iterator[Attachment]:
    try:
        yield attachment
    finally:
        attachment.unpin()


def slice_length(rows: int, vocabulary: int) -> int:
    """Positions per slice of logits of so many rows: a whole number of blocks where that fits."""
    fits = _LOGITS // (rows * vocabulary)
    return min(max(fits // BLOCK * BLOCK or fits, LEAST_SLICE), 4096)
