"""The document of a report: all that its page shows, as JSON."""

from collections.abc import Sequence
from datetime import UTC, datetime

from megaslm import __version__
from megaslm.report.curves import run_entry
from megaslm.report.runs import ReportedRun

Document = dict[str, object]


def document_of(runs: Sequence[ReportedRun]) -> Document:
    """The document of some runs."""
    return {
        "megaslm": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": ", ".join(run.name for run in runs),
        "notes": [],
        "runs": [run_entry(run) for run in runs],
        "targets": [],
        "sweep": None,
        "costs": {"rows": [], "break_even": []},
        "dynamics": [],
        "heat": [],
    }
