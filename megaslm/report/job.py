"""From run folders to the page in its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaslm.dataset.kinds import Kind, kind_of
from megaslm.errors import ConfigError
from megaslm.files import looked_in, write_file
from megaslm.report.document import Document, document_of
from megaslm.report.page import render
from megaslm.report.runs import read_runs

MARK = '<meta name="generator" content="megaslm report">'
"""What is in the first characters of every report, and of no other page."""
_BEGINNING_BYTES = 4096


@dataclass(frozen=True)
class Written:
    """A written report."""

    document: Document
    page_bytes: int
    smoke_tests: tuple[Path, ...]
    """Folders that were left out."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing in it, a line each."""
        of_runs = (f"{run['name']}: {note}" for run in self.document["runs"] for note in run["notes"])
        left_out = (
            f"{folder}: left out: is the folder of a smoke test, which is no run" for folder in self.smoke_tests
        )
        return (*of_runs, *self.document["notes"], *left_out)


def report(paths: Sequence[Path], output: Path) -> Written:
    """Reports the runs in these folders in one page. Beside runs, the folders of smoke tests are left out.

    Raises ConfigError where a folder is not that of a run, nothing is reported yet, or the page cannot be written; and
    where another file than an earlier report is at `output`.
    """
    require_output(output)
    smoke_tests = tuple(path for path in paths if kind_of(path) is Kind.SMOKE_TEST)
    document = document_of(read_runs([path for path in paths if path not in smoke_tests] or paths))
    page = render(document).encode("utf-8")
    try:
        write_file(output, page)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}); name another file with -o") from error
    return Written(document, len(page), smoke_tests)


def require_output(output: Path) -> None:
    """Raises ConfigError where something else than a report is at `output`, or its folder is missing."""
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file with -o, such as {output / 'report.html'}")
    if not output.parent.is_dir():
        where = looked_in(output.parent)
        raise ConfigError(
            f"{output}: the folder {output.parent} does not exist{where}; make it, or name another file with -o"
        )
    if output.exists() and not _is_report(output):
        raise ConfigError(f"{output}: exists and is not a report of MegaSLM; name another file with -o, or remove it")


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(_BEGINNING_BYTES)
    except OSError:
        return False
