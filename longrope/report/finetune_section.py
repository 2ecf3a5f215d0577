"""A fine-tuning run as a section of a report."""

from __future__ import annotations

from dataclasses import asdict

from longrope.lengths import format_length
from longrope.report.content import Section, record_table, short_name, shown
from longrope.report.finetune_figures import curves, held_out_plot, held_out_table
from longrope.report.finetune_run import FinetuneRun
from longrope.report.reproduce import finetune_command
from longrope.search.solve import describe_duration


def finetune_section(run: FinetuneRun) -> Section:
    """All that a fine-tuning run has to show."""
    settings = run.settings
    held_out = held_out_plot(run)
    plots = [*([held_out] if held_out is not None else []), *curves(run)]
    return Section(
        kind="fine-tuning",
        title=f"{short_name(settings.model)}, fine-tuned on segments of {format_length(settings.seq_length)}",
        name="finetune",
        source=str(run.folder),
        findings=_findings(run),
        facts=_facts(run),
        plots=tuple(plots),
        tables=(held_out_table(run),) if run.held_out else (),
        missing=_missing(run),
        records=(
            record_table("Settings", asdict(settings)),
            record_table("Weights and factors", {"fingerprint": run.record.get("fingerprint")}),
            record_table("Machine", run.record.get("machine")),
            record_table("Versions", run.record.get("versions")),
        ),
        command=finetune_command(settings, run.folder),
        command_note="How processes are started (--launcher, --gpus, --nodes) does not change the result, and is not "
        "recorded.",
    )


def _findings(run: FinetuneRun) -> tuple[str, ...]:
    found, last = [], run.steps[-1]
    if not run.done:
        found.append(
            f"This run is not done: step {last['step']} of {run.settings.steps} was the last that was logged. It is "
            "still going on, or was stopped; --resume goes on with it."
        )
    before, after = (run.held_out.get(name, {}) for name in ("before", "after"))
    for length in sorted(before.keys() & after.keys()):
        change = after[length] / before[length] - 1
        found.append(
            f"Held-out perplexity at {format_length(length)}: {before[length]:.3f} before, {after[length]:.3f} after "
            f"({change:+.1%})."
        )
    return tuple(found)


def _facts(run: FinetuneRun) -> tuple[tuple[str, str], ...]:
    settings, last = run.settings, run.steps[-1]
    tokens = last["step"] * settings.global_batch * settings.seq_length
    facts = [
        ("steps", f"{last['step']} of {settings.steps}"),
        ("tokens trained on", f"{tokens:,}"),
        ("method", settings.method if settings.attention == "full" else f"{settings.method}, {settings.attention}"),
        ("last loss", shown(last["loss"])),
        ("seed", str(settings.seed)),
    ]
    if "train_runtime" in run.summary:
        facts.append(("duration of the last start", describe_duration(run.summary["train_runtime"])))
    peaks = [entry["peak_memory_gib"] for entry in run.steps if isinstance(entry.get("peak_memory_gib"), (int, float))]
    if peaks:
        facts.append(("peak memory", f"{max(peaks):.1f} GiB"))
    return tuple(facts)


def _missing(run: FinetuneRun) -> tuple[str, ...]:
    if run.settings.held_out.source is None:
        return ("Held-out perplexity: n/a, the run was not given --held-out.",)
    absent = [name for name in ("before", "after") if name not in run.held_out]
    return (f"Held-out perplexity {' and '.join(absent)} training: n/a, not measured.",) if absent else ()
