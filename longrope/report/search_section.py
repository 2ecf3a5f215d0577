"""A search, or a window of a readjustment, as a section of a report."""

from __future__ import annotations

import math

from longrope.lengths import format_length
from longrope.report.content import Section, Table, record_table, short_name, shown, when
from longrope.report.reproduce import search_command
from longrope.report.search_progress_figures import convergence_plot, gain_plot, n_hat_plot
from longrope.report.search_result_figures import (
    difference_plot,
    differences,
    factors_plot,
    held_out_plot,
    position_plot,
)
from longrope.report.search_run import SearchRun
from longrope.search.solve import describe_duration


def search_section(run: SearchRun) -> Section:
    """All that a search has to show."""
    factors, provenance = run.factors, run.provenance
    original, target = format_length(factors.original_length), format_length(factors.target_length)
    draw = (
        held_out_plot, difference_plot, position_plot, factors_plot, convergence_plot, gain_plot, n_hat_plot,
    )  # fmt: skip
    settings = {**provenance.get("settings", {}), "seed": provenance.get("seed")}
    model = dict(provenance.get("model", {}))
    data = {**provenance.get("data", {})}
    drawn = data.pop("drawn", {})
    for name in ("search", "held_out"):
        data[f"{name} documents"] = [f"{each['name']} ({each['digest'][:8]})" for each in drawn.get(name, ())]
    name, kind = short_name(model.get("name")), "readjustment" if run.is_readjustment else "search"
    try:
        command = search_command(provenance)
    except (KeyError, TypeError, ValueError):
        command = None
    return Section(
        kind=f"{kind} of factors",
        title=f"{name}, window {target}" if run.is_readjustment else f"{name}: {original} to {target} tokens",
        name=kind,
        source=str(run.folder),
        findings=_findings(run),
        facts=_facts(run),
        plots=tuple(plot for make in draw if (plot := make(run)) is not None),
        tables=(_results(run),) if run.methods else (),
        missing=_missing(run),
        failures=run.failures,
        records=(
            record_table("Model", model),
            record_table("Settings", settings),
            record_table("Data", data),
            record_table("Run", None if run.record is None else _without(run.record, "machine", "versions")),
            record_table("Machine", None if run.record is None else run.record.get("machine")),
            record_table("Versions", provenance.get("versions") or (run.record or {}).get("versions")),
        ),
        command=command,
        command_note=_note(run),
    )


def _findings(run: SearchRun) -> tuple[str, ...]:
    searched, found = run.searched, []
    target = format_length(run.factors.target_length)
    if searched is not None and run.held_out:
        value = searched.held_out.get(run.factors.target_length)
        found.append(
            f"On {len(run.held_out)} held-out documents of {target} tokens the searched factors have a perplexity of "
            f"{shown(value)}."
        )
    if run.scored_part:
        found.append(f"Every perplexity is that{run.scored_part}, not of all tokens.")
    reference = run.reference
    for method, difference in differences(run).items():
        if method == reference:
            better = "better" if difference.mean > 0 else "worse"
            sure = (
                f"{abs(difference.standard_errors):.1f} standard errors"
                if math.isfinite(difference.standard_errors)
                else "the same on every document"
            )
            found.append(
                f"That is {abs(difference.mean):.4f} nats per token {better} than {method.label} (paired standard "
                f"error {difference.standard_error:.4f}, {sure})."
            )
            if abs(difference.standard_errors) < 2:
                found.append("So these documents do not tell the two apart.")
    if not run.held_out:
        found.append(
            "No documents were held out, so nothing here says how the factors do on text they were not chosen by."
        )
    return tuple(found)


def _facts(run: SearchRun) -> tuple[tuple[str, str], ...]:
    factors, record = run.factors, run.record or {}
    results = run.provenance.get("results", {})
    facts = [
        ("n_hat", str(factors.n_hat)),
        ("lambda", f"{factors.lambdas[0]:g} to {factors.lambdas[-1]:g}"),
        ("attention factor", f"{factors.attention_factor:.4f}"),
        ("candidates", str(results.get("evaluations", len(run.candidates) or None))),
        ("samples", f"{len(run.samples)} + {len(run.held_out)} held out"),
        ("seed", str(run.provenance.get("seed"))),
    ]
    if "wall_seconds" in record:
        facts.append(("duration", describe_duration(record["wall_seconds"])))
    if "finished" in record:
        facts.append(("finished", when(record["finished"])))
    return tuple(facts)


def _results(run: SearchRun) -> Table:
    lengths = sorted({length for method in run.methods for length in method.held_out})
    target = format_length(run.factors.target_length)
    columns = (
        "method",
        "attention factor",
        f"search {target}",
        *(f"held out {format_length(each)}" for each in lengths),
    )
    rows = tuple(
        (method.name, method.attention_factor, method.search, *(method.held_out.get(each) for each in lengths))
        for method in run.methods
    )
    return Table(columns, rows, "Perplexity of every method, at its published attention factor and at the search's")


def _missing(run: SearchRun) -> tuple[str, ...]:
    found = []
    if run.header is None:
        found.append("The journal (evaluations.jsonl) is not there: no candidates, positions or n_hat, n/a.")
    if run.record is None:
        found.append("The record of the run (run.json) is not there: machine and duration, n/a.")
    if not run.methods:
        found.append("The factors hold no results: comparison with other methods, n/a.")
    return tuple(found)


def _note(run: SearchRun) -> str:
    if run.is_readjustment:
        return (
            "Add --factors if the model's folder does not hold the long factors: the run did not record where they "
            "came from. Several windows that are searched by one command build on each other."
        )
    return "The same seed, data, model and version of longrope give the same factors, with any number of workers."


def _without(record: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in record.items() if name not in names}
