"""How to serve an exported folder in each engine, and what the engine computes with it, in Markdown.

What engines compute is asked of the same code as ``longrope check``, so that a card says the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from longrope.export.engines.check import ENGINES
from longrope.export.engines.folder import Folder, read_folder
from longrope.export.engines.service import Report, Row, compare
from longrope.export.two_lists import TwoLists
from longrope.lengths import format_length

_TITLES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llama.cpp": "llama.cpp",
    "exllama": "exllamav3",
    "mlx": "mlx-lm",
}
"""The engines beside transformers, by their names in ``longrope check``."""


def serving(folder: Path, name: str, lists: TwoLists, losses: tuple[str, ...], code: bool) -> list[str]:
    """A section for each engine.

    Args:
        folder: where config.json and longrope.json have been written.
        name: what stands for the folder in commands.
        lists: what the config holds.
        losses: what plain transformers does differently from the schedule.
        code: whether the folder holds the modeling file.
    """
    written = read_folder(folder)
    parts = [
        f"`longrope check {name} --engine ENGINE` says the following in full, and for the longest sequence that you "
        "mean to serve.",
        "### transformers",
        *_transformers(name, lists, losses, code),
    ]
    for engine, title in _TITLES.items():
        lines = [line.replace(str(folder), name) for line in _engine(written, engine)]
        parts += [f"### {title}", "\n".join(lines)]
    return parts


def _transformers(name: str, lists: TwoLists, losses: tuple[str, ...], code: bool) -> Iterator[str]:
    load = f'AutoModelForCausalLM.from_pretrained("{name}", dtype="auto"'
    if code:
        yield "With all windows and n_hat, by the modeling file in this folder:"
        yield _python("from transformers import AutoModelForCausalLM", f"{load}, trust_remote_code=True)")
    yield "With all windows and n_hat, by the longrope package:"
    yield _python("import longrope", f'longrope.load("{name}")')
    yield "Without either, from the config alone:"
    yield _python("from transformers import AutoModelForCausalLM", f"{load})")
    factor = f"attention factor {lists.attention_factor:.6g}"
    if lists.short == lists.long:
        yield f"All sequences then get the factors of window {format_length(lists.long.max_length)} and {factor}."
    else:
        short, long = (format_length(window.max_length) for window in (lists.short, lists.long))
        yield (
            f"Sequences of up to {format_length(lists.original_length)} tokens then get the factors of window {short}, "
            f"longer ones those of window {long}, and all of them {factor}. The largest position in a batch decides "
            "for the whole batch, in each forward call anew."
        )
    if losses:
        lines = "\n".join(f"- {loss}" for loss in losses)
        yield f"What this loses against the windows above:\n\n{lines}"


def _python(line: str, call: str) -> str:
    return f"```python\n{line}\n\nmodel = {call}\n```"


def _engine(folder: Folder, name: str) -> Iterator[str]:
    """How to start one engine with the whole window, and what it computes then."""
    engine = ENGINES[name]
    service = engine.serve(folder, folder.schedule.windows[-1].max_length)
    report = compare("", "", folder.reference, folder.schedule, service)
    for line in service.serve_with:
        yield f"    {line}"
    if service.serve_with:
        yield ""
    if report.same:
        yield "- all sequences get what was measured"
    for line in service.mismatches:  # where commands lead away from the folder, these are what they mend
        yield f"- {'of the folder itself' if service.serve_with else 'differs'}: {line}"
    if not service.mismatches:
        yield from (f"- differs: {line}" for line in _differences(report))
        yield f"- crossing a window: {service.crossing.replace('never: ', 'no change, ')}"
    yield from (f"- ignored: {line}" for line in service.ignored)
    yield from (f"- note: {line}" for line in service.notes)


def _differences(report: Report) -> Iterator[str]:
    """Lengths that get something else, neighbours with the same difference together."""
    for what, group in groupby(report.rows, key=_difference):
        together = list(group)
        if what:
            first, last = together[0].first, together[-1].last
            since = f"{first} to " if first < last else ""
            yield f"{since}{format_length(last)} tokens get {what}"


def _difference(row: Row) -> str:
    """What the engine does otherwise; empty where it does the same."""
    factors, used = row.window.factors, row.used.attention_factor
    if not row.same_factors and not row.used.turns_like(factors.replace(n_hat=0)):
        return f"the {row.used.name} list"
    parts = [] if row.same_factors else [f"no n_hat instead of {factors.n_hat}"]
    if not row.same_attention_factor and used is not None:
        parts.append(f"attention factor {used:.6g} instead of {factors.attention_factor:.6g}")
    return " and ".join(parts)
