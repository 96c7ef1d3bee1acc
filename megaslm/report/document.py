"""The document of a report: all that its page shows, as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from megaslm import __version__
from megaslm.dynamics.trajectories import LEAST_MEASUREMENTS
from megaslm.errors import DataError
from megaslm.report.costs import costs_of
from megaslm.report.curves import Entry, run_entries
from megaslm.report.heat import heat_entry
from megaslm.report.probe import probe_of
from megaslm.report.runs import ReportedRun
from megaslm.report.sweep import sweep_of
from megaslm.report.targets import baseline_of, sentences, shared_places, targets_of
from megaslm.report.token_dynamics import dynamics_entry

HEAT_BYTES = 1_200_000
"""Of the page, for the heat maps of all runs together."""
MOST_PROBES = 6
"""Most runs whose single tokens are shown."""
Document = dict[str, Any]


def document_of(runs: Sequence[ReportedRun]) -> Document:
    """The document of some runs."""
    entries = run_entries(runs)
    dynamics, heat, notes = _of_probes(runs, entries)
    targets, costs, sweep = targets_of(runs), costs_of(runs), sweep_of(runs)
    return {
        "megaslm": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": ", ".join(run.name for run in runs),
        "notes": notes,
        "in_short": in_short(runs, costs, sweep),
        "runs": entries,
        "targets": targets,
        "sweep": sweep,
        "costs": costs,
        "dynamics": dynamics,
        "heat": heat,
    }


def _of_probes(runs: Sequence[ReportedRun], entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry], list[str]]:
    """Token dynamics, heat maps and notes on both. What cannot be read of a run is said in its entry."""
    probes = []
    for run, entry in zip(runs, entries, strict=True):
        with _said_in(entry):
            if (probe := probe_of(run)) is not None:
                probes.append((probe, entry))
    dynamics: list[Entry] = []
    heat: list[Entry] = []
    shown = probes[:MOST_PROBES]
    for probe, entry in shown:
        if len(probe.steps) < LEAST_MEASUREMENTS:
            entry["notes"].append(f"no token dynamics: they need {LEAST_MEASUREMENTS} measurements of the probe rows")
        else:
            with _said_in(entry):
                dynamics.append(dynamics_entry(probe))
        with _said_in(entry):
            heat.append(heat_entry(probe, HEAT_BYTES // len(shown)))
    notes = [
        f"{probe.run.name}: its single tokens are left out, for the page shows those of {MOST_PROBES} runs"
        for probe, _ in probes[MOST_PROBES:]
    ]
    return dynamics, heat, notes


@contextmanager
def _said_in(entry: Entry) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        note = f"its single tokens are left out: {error}"
        # Token dynamics and the heat map may fail at the same file.
        if note not in entry["notes"]:
            entry["notes"].append(note)


def in_short(runs: Sequence[ReportedRun], costs: Mapping[str, Any], sweep: Mapping[str, Any] | None) -> list[str]:
    """How each selective run ended at each place beside the baseline, and when its preparation has paid for itself.

    Without a baseline, the best value of a sweep. Empty where nothing is compared.
    """
    baseline = baseline_of(runs)
    if baseline is not None and (places := shared_places(baseline, runs)):
        compared = [sentence for place in places for sentence in sentences(place, baseline, runs)]
        return [*compared, *(balance["sentence"] for balance in costs["break_even"])]
    best = None if sweep is None else sweep["best"]
    return [] if best is None else [best["sentence"]]
