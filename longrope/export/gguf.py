"""Write a GGUF file that llama.cpp serves with our factors: its two lists of frequency factors.

llama.cpp divides the plain frequency of pair ``i`` by element ``i`` of ``rope_factors_long.weight`` where the context
it was given is longer than ``rope.scaling.original_context_length``, and by ``rope_factors_short.weight`` elsewhere;
cos and sin are multiplied by ``rope.scaling.attn_factor``. The context decides, not the text, and n_hat does not
exist. Read in the source of llama.cpp at ggml 0.25.3, and measured (tests/engines).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from longrope.exceptions import FactorsError, InvalidInputError, RunExistsError, UnsupportedModelError
from longrope.export import n_hat
from longrope.export.gguf_file import GGUFFile, Report
from longrope.export.two_lists import two_lists
from longrope.lengths import format_length
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

# Those whose tensors llama.cpp loads and whose queries and keys it turns with them, in every layer. It also loads
# them for pangu-embedded and refact, which never use them, and for granite_swa, step35 and mistral3, whose sliding
# windows or attention temperature depend on more than the factors.
ARCHITECTURES = ("llama", "phi3", "phimoe", "minicpm", "minicpm3", "granite", "granitemoe", "deci", "apertus")

LONG, SHORT, PLAIN = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
# What would scale the frequencies a second time, or belongs to another type of scaling.
_STALE = (
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.alpha",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
CONTEXT_STEP = 256
"""llama.cpp rounds the context it is given up to a multiple of this."""


@dataclass(frozen=True)
class ExportedGGUF:
    """What was written, and what llama.cpp will do differently from the schedule.

    Attributes:
        short, long: the windows whose factors became the two lists.
        division: contexts of at most so many tokens take the short list, longer ones the long list.
    """

    path: Path
    schedule: FactorSchedule
    short: Window
    long: Window
    division: int
    losses: tuple[str, ...]


def export_gguf(
    base: str | Path,
    factors: RopeFactors | FactorSchedule,
    output: str | Path,
    short_window: int | None = None,
    without_n_hat: bool = False,
    report: Report | None = None,
) -> ExportedGGUF:
    """Write ``output``: ``base`` with the factors, and every other tensor and metadata entry as it was.

    Args:
        base: a GGUF file of the model the factors were made for, in any quantisation.
        factors: of one window, which is put on top of the base's present ones, or a whole schedule.
        output: the GGUF file to write.
        short_window: length of the window whose factors become the short list; see
            :func:`longrope.export.two_lists.two_lists`.
        without_n_hat: replace factors with n_hat > 0 by the best candidate with n_hat = 0 of the same search.
        report: told how many bytes of tensors are written, and how many there are.

    Raises:
        FactorsError: if the factors do not fit the base, or need n_hat.
        InvalidInputError: if ``base`` is not a GGUF file of a whole model.
        RunExistsError: if ``output`` exists.
        SettingsError: if the schedule has no such short window, or the package gguf is not installed.
        UnsupportedModelError: if llama.cpp would ignore the factors.
    """
    output = Path(output)
    if output.exists():
        if Path(base).exists() and output.samefile(base):
            raise RunExistsError(f"base and output are the same file {output}; choose another output")
        raise RunExistsError(f"output {output} exists; choose another file")
    file = GGUFFile(base)
    architecture = _architecture(file)
    reference = factors if isinstance(factors, RopeFactors) else factors.reference
    check_fits(file, reference)
    if isinstance(factors, RopeFactors):
        schedule = _put_on_top(factors, _present(file, architecture, factors))
    else:
        schedule = factors
    chosen = two_lists(schedule, short_window)
    for length in (chosen.short.max_length, chosen.long.max_length):
        flat = n_hat.without_n_hat(schedule.factors_for(length), without_n_hat, "llama.cpp")
        schedule = schedule.with_window(flat, length)
    lists = two_lists(schedule, short_window)
    short, long = lists.short, lists.long
    # llama.cpp reads this number for nothing else, so that the lists change where the short window ends.
    division = short.max_length if short != long else reference.original_length
    file.write_changed(
        output,
        metadata={
            f"{architecture}.context_length": long.max_length,
            f"{architecture}.rope.scaling.type": "longrope",
            f"{architecture}.rope.scaling.original_context_length": division,
            f"{architecture}.rope.scaling.attn_factor": long.factors.attention_factor,
        },
        tensors={
            name: np.asarray(window.factors.lambdas, dtype=np.float32)
            for name, window in ((LONG, long), (SHORT, short))
        },
        dropped={PLAIN, *(f"{architecture}.{name}" for name in _STALE)},
        report=report,
    )
    return ExportedGGUF(output, schedule, short, long, division, tuple(_losses(schedule, short, long, division)))


def _architecture(file: GGUFFile) -> str:
    architecture = file.value("general.architecture")
    if file.value("general.type", "model") != "model":
        raise InvalidInputError(f"{file.path} is of type {file.value('general.type')!r}; give the file of a model")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"llama.cpp does not turn every layer of architecture {architecture!r} with lists of factors; "
            f"it does for {', '.join(ARCHITECTURES)}"
        )
    return str(architecture)


def check_fits(file: GGUFFile, factors: RopeFactors) -> None:
    """Raise FactorsError unless the factors are for the model in the file, whose rope_theta is in float32."""
    architecture = file.value("general.architecture")
    rotary_dim = file.value(f"{architecture}.rope.dimension_count", file.value(f"{architecture}.attention.key_length"))
    if rotary_dim is None:
        heads = file.value(f"{architecture}.attention.head_count", 1)
        first = heads[0] if isinstance(heads, list) else heads
        rotary_dim = file.value(f"{architecture}.embedding_length", 0) // first
    rope_theta = file.value(f"{architecture}.rope.freq_base", 10000.0)
    if np.float32(factors.rope_theta) == np.float32(rope_theta):
        rope_theta = factors.rope_theta
    factors.check_fits(rope_theta, rotary_dim)


def _present(file: GGUFFile, architecture: str, like: RopeFactors) -> FactorSchedule:
    """The factors that llama.cpp uses with the base as it is, each at the contexts it uses them for."""

    def said(name: str, default: float) -> float:
        return float(file.value(f"{architecture}.{name}", default))

    def window(length: int, name: str | None) -> Window:
        values = np.ones(len(like.lambdas)) if name is None else file.tensor(name)
        assert values is not None
        lambdas = tuple((values * scale).tolist())
        return Window(
            length,
            like.replace(
                lambdas=lambdas,
                target_length=length,
                n_hat=0,
                attention_factor=said("rope.scaling.attn_factor", 1.0),
                provenance={"method": "the base's own"},
            ),
        )

    kind = file.value(f"{architecture}.rope.scaling.type", "linear")
    scale = 1.0 if kind == "none" else said("rope.scaling.factor", 0.0) or said("rope.scale_linear", 0.0) or 1.0
    context = int(said("context_length", like.original_length))
    if file.tensor(LONG) is not None and file.tensor(SHORT) is not None:
        division = int(said("rope.scaling.original_context_length", context))
        if division >= context:
            return FactorSchedule((window(context, SHORT),))
        return FactorSchedule((window(division, SHORT), window(context, LONG)))
    if kind not in ("linear", "none"):
        raise FactorsError(
            f"{file.path} is scaled already, with type {kind!r}, and does not hold its factors as lists; give a whole "
            "schedule, such as the longrope.json that `longrope apply` writes"
        )
    if file.tensor(PLAIN) is not None:
        return FactorSchedule((window(context, PLAIN),))
    # A plain model's context is that of its pretraining, whatever the file promises.
    return FactorSchedule((window(context if scale != 1 else min(context, like.original_length), None),))


def _put_on_top(factors: RopeFactors, present: FactorSchedule) -> FactorSchedule:
    longest = present.windows[-1].max_length
    if factors.target_length < longest:
        raise FactorsError(
            f"the factors are for {format_length(factors.target_length)}, and the base already serves contexts of "
            f"{format_length(longest)}; give factors for more, or a whole schedule"
        )
    return present.with_window(factors)


def _losses(schedule: FactorSchedule, short: Window, long: Window, division: int) -> Iterator[str]:
    """Which contexts get other factors than the schedule gives texts of that length."""
    below = 0
    for window in schedule.windows:
        edges = {below, window.max_length} | ({division} if below < division < window.max_length else set())
        for start, stop in pairwise(sorted(edges)):
            used = short if stop <= division else long
            contexts = f"contexts of {start + 1} to {format_length(stop)} tokens"
            if window.factors.lambdas != used.factors.lambdas:
                yield (
                    f"{contexts} get the factors of window {format_length(used.max_length)} instead of those of "
                    f"{format_length(window.max_length)}: llama.cpp has two lists, divided at {format_length(division)}"
                )
            if window.factors.attention_factor != long.factors.attention_factor:
                yield (
                    f"{contexts} get attention factor {long.factors.attention_factor:.4f} instead of "
                    f"{window.factors.attention_factor:.4f}: llama.cpp has one for both lists"
                )
        below = window.max_length
    if short.factors.lambdas == long.factors.lambdas:
        return
    yield (
        "llama.cpp chooses the list by the context it is given, not by the length of the text: above "
        f"{format_length(division)} every text gets the long list, however short it is"
    )
    if division % CONTEXT_STEP:
        reached = division // CONTEXT_STEP * CONTEXT_STEP
        yield (
            f"llama.cpp rounds contexts up to a multiple of {CONTEXT_STEP}: the short list needs one of "
            + (f"at most {format_length(reached)} tokens" if reached else "less than that, so it is never used")
        )
