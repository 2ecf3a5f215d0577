"""A model under a policy, as lm-evaluation-harness asks it.

The window of a request is that of its full length: context and continuation, or prompt and all tokens that may be
generated. Only requests of equal factors share a batch, so its size changes nothing but rounding. The longest input
is that of the policy, not that of the config; longer ones are cut from the left, as the harness does, and counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from longrope.evaluation.harness_responses import Responses
from longrope.exceptions import SettingsError
from longrope.model.attach import attached
from longrope.model.score import score_continuations
from longrope.rope.policy import RopePolicy

BATCH_TOKENS = 1 << 15
"""Tokens of a batch, padding included, that must not be exceeded by adding a row to it: long inputs go alone."""


def batches(policy: RopePolicy, lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of sequences that share a forward pass: of equal factors, the longest first.

    Args:
        lengths: full length of each sequence.
        size: sequences of a batch at most.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch:
            longest = lengths[batch[0]]
            full = len(batch) == size or longest * (len(batch) + 1) > BATCH_TOKENS
            if full or policy.factors_for(lengths[number]) != policy.factors_for(longest):
                yield batch
                batch = []
        batch.append(number)
    if batch:
        yield batch


def harness_model(
    model: Any, tokenizer: Any, policy: RopePolicy, max_length: int, batch_size: int, responses: Responses
) -> Any:
    """The model as an ``lm_eval`` model.

    Attributes of what is returned, beside those of ``HFLM``:
        truncated: numbers of the documents that were cut, by the name of their task.

    Args:
        model: a causal language model without a policy attached.
        max_length: tokens of an input at most.
        batch_size: sequences of a batch at most.
        responses: those known already are not asked for; new ones are added batch by batch.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    class PolicyLM(HFLM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size)
            self.set_cache_hook(responses)
            self.truncated: defaultdict[str, set[int]] = defaultdict(set)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            ask = super().loglikelihood
            found = self._answer("loglikelihood", requests, lambda missing: ask(missing, disable_tqdm=True))
            return [(likelihood, greedy) for likelihood, greedy in found]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            ask = super().loglikelihood_rolling

            def one_by_one(missing: list[Any]) -> list[float]:
                return [ask([request], disable_tqdm=True)[0] for request in missing]

            return self._answer("loglikelihood_rolling", requests, one_by_one)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            return self._answer("generate_until", requests, self._generate)

        def _answer(self, kind: str, requests: list[Any], ask: Callable[[list[Any]], list[Any]]) -> list[Any]:
            # What is sampled is asked for every time, or all repeats of a request would have one response.
            known = [None if _is_sampled(request) else responses.get(kind, request.args) for request in requests]
            missing = [request for request, response in zip(requests, known, strict=True) if response is None]
            new = iter(ask(missing) if missing else [])
            for request in requests:
                if responses.is_truncated(kind, request.args):
                    self.truncated[request.task_name].add(request.doc_id)
            return [next(new) if response is None else response for response in known]

        def _loglikelihood_tokens(
            self,
            requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
            disable_tqdm: bool = True,
            override_bs: int | None = None,
        ) -> list[tuple[float, bool]]:
            # Choices of one letter have one and the same input: the question.
            asked: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
            for number, (names, context, continuation) in enumerate(requests):
                if not 0 < len(continuation) <= self.max_length:
                    raise SettingsError(
                        f"a continuation of {len(continuation)} tokens cannot be scored in {self.max_length}; give a "
                        "larger --max-length"
                    )
                whole = [*context, *continuation]
                if names is not None and len(whole) > self.max_length + 1:
                    responses.mark_truncated("loglikelihood", names)
                asked[tuple(whole[-(self.max_length + 1) : -1])].append(number)
            texts = list(asked)
            lengths = [min(len(text) + 1, self.max_length) for text in texts]
            found: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
            for batch in batches(policy, lengths, self.batch_size):
                numbers = [(row, number) for row, text in enumerate(batch) for number in asked[texts[text]]]
                longest = lengths[batch[0]]
                scores = score_continuations(
                    model,
                    [texts[text] for text in batch],
                    [(row, requests[number][2]) for row, number in numbers],
                    policy.factors_for(longest),
                    longest,
                )
                for (_, number), score in zip(numbers, scores, strict=True):
                    if not math.isfinite(score[0]):
                        raise FloatingPointError("the loss is not finite; try bfloat16 or float32")
                    found[number] = score
                    names = requests[number][0]
                    if names is not None:
                        responses.add_partial("loglikelihood", names, score)
            return found

        def _generate(self, requests: list[Any]) -> list[str]:
            lengths = []
            for request in requests:
                prompt, options = request.args
                new = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
                room = self.max_length - new
                if room < 1:
                    raise SettingsError(
                        f"{new} tokens are to be generated, which leaves no room for a prompt in {self.max_length}; "
                        "give a larger --max-length"
                    )
                tokens = len(self.tok_encode(prompt))
                if tokens > room:
                    responses.mark_truncated("generate_until", request.args)
                lengths.append(min(tokens, room) + new)
            found = [""] * len(requests)
            for batch in batches(policy, lengths, self.batch_size):
                with attached(model, policy, length=lengths[batch[0]]):
                    texts = super().generate_until([requests[number] for number in batch], disable_tqdm=True)
                for number, text in zip(batch, texts, strict=True):
                    found[number] = text
            return found

    return PolicyLM()


def _is_sampled(request: Any) -> bool:
    return len(request.args) == 2 and isinstance(request.args[1], dict) and bool(request.args[1].get("do_sample"))
