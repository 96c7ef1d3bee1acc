"""The document of a report: all that its page shows, as JSON."""

from collections.abc import Sequence
from datetime import UTC, datetime

from megaslm import __version__
from megaslm.report.costs import costs_of
from megaslm.report.curves import run_entry
from megaslm.report.runs import ReportedRun
from megaslm.report.sweep import sweep_of
from megaslm.report.targets import targets_of

Document = dict[str, object]


def document_of(runs: Sequence[ReportedRun]) -> Document:
    """The document of some runs."""
    return {
        "megaslm": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": ", ".join(run.name for run in runs),
        "notes": [],
        "runs": [run_entry(run) for run in runs],
        "targets": targets_of(runs),
        "sweep": sweep_of(runs),
        "costs": costs_of(runs),
        "dynamics": [],
        "heat": [],
    }
