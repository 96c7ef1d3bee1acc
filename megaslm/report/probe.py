"""The probe of a run, as a report reads it: rows, measurements, and the text of the tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

from tokenizers import Tokenizer

from megaslm.config.run_files import PROBE
from megaslm.observe.probe_files import ProbeRows, measured_steps, read_rows
from megaslm.report.runs import ReportedRun
from megaslm.tokenizer.token_text import texts_of_row
from megaslm.tokenizer.tokenizer import load_tokenizer

MOST_LETTERS = 100
"""Of the text of a token. Longer tokens are rare: mostly runs of one character."""


@dataclass(frozen=True)
class Probe:
    """The probe of a run that has measurements."""

    run: ReportedRun
    folder: Path
    rows: ProbeRows
    steps: tuple[int, ...]
    """The measured steps, rising; one or more."""

    @cached_property
    def texts(self) -> "RowTexts":
        """The text of each token of each row. Raises DataError where the run's tokenizer cannot be read."""
        return RowTexts(load_tokenizer(self.run.model), self.rows)


class RowTexts(Sequence[list[str]]):
    """The text of each token of each probe row, long ones shortened. It is found when asked for: most rows are not
    shown."""

    def __init__(self, tokenizer: Tokenizer, rows: ProbeRows) -> None:
        self._tokenizer, self._rows = tokenizer, rows
        self._known: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self._rows.tokens)

    @overload
    def __getitem__(self, row: int) -> list[str]: ...
    @overload
    def __getitem__(self, row: slice) -> list[list[str]]: ...
    def __getitem__(self, row: int | slice) -> list[str] | list[list[str]]:
        if isinstance(row, slice):
            return [self[one] for one in range(len(self))[row]]
        if row not in self._known:
            texts = texts_of_row(self._tokenizer, self._rows.tokens[row].tolist(), self._rows.eos_id)
            self._known[row] = [shortened(text) for text in texts]
        return self._known[row]


def shortened(text: str) -> str:
    """The text of a token, so short that many of them fit into a page."""
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}… ({len(text):,} characters)"


def probe_of(run: ReportedRun) -> Probe | None:
    """The probe of a run; None where it has measured none. Raises DataError where a file is corrupt."""
    folder = run.path / PROBE
    rows = read_rows(folder)
    steps = measured_steps(folder) if rows is not None else []
    return None if rows is None or not steps else Probe(run, folder, rows, tuple(steps))
