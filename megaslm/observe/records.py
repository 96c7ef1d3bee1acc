"""What a run says about itself, as plain values, and metrics.jsonl that keeps them.

Log files grow by whole entries, also where the disk is full now and then.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megaslm.files import sync

_MOST_KEPT_BYTES = 16 << 20


class LogFile:
    """Entries that follow one another in a file. Those that cannot be written wait in memory."""

    def __init__(self, path: Path, *, end_bytes: int = 0) -> None:
        """Goes on where the file's first `end_bytes` end; what lies behind them is taken out."""
        self.path = path
        self.lost_entries = 0
        self._end_bytes = end_bytes
        self._kept = bytearray()
        if path.exists():
            os.truncate(path, end_bytes)

    def keep(self, entry: bytes) -> None:
        """Takes an entry for the next `flush`; where too many wait for it already, the entry is lost and counted."""
        if len(self._kept) + len(entry) > _MOST_KEPT_BYTES:
            self.lost_entries += 1
        else:
            self._kept += entry

    def flush(self) -> None:
        """Writes what is kept.

        Raises:
            OSError: it could not be written; the file is as it was, and the entries are kept.
        """
        # Opened each time: a network file system may tell on closing alone that there was no room.
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            end_bytes = min(self._end_bytes, os.fstat(file).st_size)
            self._write(file, end_bytes)
        finally:
            os.close(file)
        self._end_bytes = end_bytes + len(self._kept)
        self._kept.clear()

    def sync(self) -> None:
        """Writes what is kept, and waits until all of the file has reached the disk; raises what `flush` does."""
        self.flush()
        sync(self.path)
        sync(self.path.parent)

    def _write(self, file: int, end_bytes: int) -> None:
        written = 0
        try:
            while written < len(self._kept):
                written += os.pwrite(file, memoryview(self._kept)[written:], end_bytes + written)
        except OSError:
            # Nobody is to find half an entry.
            os.ftruncate(file, end_bytes)
            raise


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step."""

    step: int
    """Counted from 1."""
    tokens: int
    """Targets read so far, over all ranks."""
    loss: float
    """Mean loss of the selected targets, in nats: what was trained on."""
    all_loss: float | None
    """Mean loss of all valid targets, in nats; null where `slm.measure_unselected` is off, or where one of them is NaN
    or infinite."""
    selected_ratio: float
    """Selected targets by valid ones."""
    learning_rate: float
    gradient_norm: float
    """Global norm before clipping."""
    tokens_per_second: float
    """Over the steps since the last report, all ranks together."""
    threshold: float | None = None
    """Value of the criterion from which targets were selected; the mean where rows or micro-batches have thresholds of
    their own. Null where all were selected, or there were none."""
    excess_quantiles: dict[str, float] = field(default_factory=dict)
    """Excess loss in nats at 5, 25, 50, 75 and 95% of all valid targets."""
    domain_ratio: dict[str, float] = field(default_factory=dict)
    """Selected targets by valid ones, in each domain."""
    domain_tokens: dict[str, int] = field(default_factory=dict)
    """Targets read so far of each domain, over all ranks."""
    domain_passes: dict[str, float] = field(default_factory=dict)
    """How often each domain's rows were read so far, on average."""


@dataclass(frozen=True)
class ValidationRecord:
    """Losses on one domain of one held-out set; the domain `all` joins the set's domains."""

    step: int
    tokens: int
    name: str
    domain: str
    loss: float
    """Mean loss of all valid targets, in nats."""
    perplexity: float
    targets: int
    """Valid targets measured."""


@dataclass(frozen=True)
class SkippedRecord:
    """An optimiser step that was not made, on any rank."""

    step: int
    tokens: int
    """Targets read so far, over all ranks; those of the step were read."""
    reason: str
    skipped_steps: int
    """Of the run so far, this one among them."""


@dataclass(frozen=True)
class PaceRecord:
    """How quick the ranks were since the last report."""

    step: int
    slowest_rank: int
    slowest_rank_ratio: float
    """How many times as long as the middle rank it needs for the same work; 1 where all are alike."""


Record = StepRecord | SkippedRecord | ValidationRecord | PaceRecord

_KINDS: dict[type[Record], str] = {
    StepRecord: "step",
    SkippedRecord: "skipped",
    ValidationRecord: "validation",
    PaceRecord: "pace",
}
_TYPES = {kind: record for record, kind in _KINDS.items()}


class MetricsFile:
    """metrics.jsonl: one JSON object a line, `kind` "step", "skipped", "validation" or "pace"."""

    def __init__(self, path: Path, *, last_step: int, validation_is_due: bool = False) -> None:
        """Opens the file to append; lines of steps after `last_step`, from a run that was cut off, are taken out.

        So are the validations of `last_step` where `validation_is_due`: they are made again.
        """
        self.name = str(path)
        self._file = LogFile(path, end_bytes=_kept_bytes(path, last_step, validation_is_due=validation_is_due))

    @property
    def lost_entries(self) -> int:
        """Lines that found no room, neither on the disk nor in memory."""
        return self._file.lost_entries

    def write(self, records: Sequence[Record]) -> None:
        """Appends and flushes.

        Raises:
            OSError: they could not be written; they are kept for the next call.
        """
        for record in records:
            self._file.keep(json.dumps({"kind": _KINDS[type(record)], **_jsonable(record)}).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Waits until all of it has reached the disk; raises OSError where it cannot."""
        self._file.sync()


def read_validations(path: Path) -> list[ValidationRecord]:
    """The validation records of a metrics.jsonl, in order."""
    records = [_record(line) for line in _lines(path) if line["kind"] == "validation"]
    return [record for record in records if isinstance(record, ValidationRecord)]


def read_step(path: Path, step: int) -> list[Record]:
    """All records of one step in a metrics.jsonl, in order."""
    return [_record(line) for line in _lines(path) if line["step"] == step]


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _record(line: Mapping[str, Any]) -> Record:
    values = {key: value for key, value in line.items() if key != "kind"}
    if line["kind"] != "step":
        # What `_jsonable` made null was no number. Of a step it may also be what was not measured.
        values = {key: math.nan if value is None else value for key, value in values.items()}
    return _TYPES[line["kind"]](**values)


def _jsonable(record: Record) -> dict[str, object]:
    """The record's values; JSON knows no NaN and no infinity, which are null in it."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(record).items()
    }


def _kept_bytes(path: Path, last_step: int, *, validation_is_due: bool) -> int:
    """The size of the lines up to that step's last; steps never fall in a file, and in a step validation comes last."""
    kept_bytes = 0
    if last_step == 0 or not path.exists():
        return kept_bytes
    with path.open("rb") as file:
        for text in file:
            # The last line may be one that a killed process left half written.
            if not text.endswith(b"\n"):
                break
            try:
                line = json.loads(text)
            except ValueError:
                # What a host had not synced when it lost its power may come back as zeros, with whole lines behind.
                break
            is_made_again = validation_is_due and (line["kind"], line["step"]) == ("validation", last_step)
            if line["step"] > last_step or is_made_again:
                break
            kept_bytes += len(text)
    return kept_bytes
