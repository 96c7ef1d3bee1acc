"""The records of a run as plain values, and metrics.jsonl, the file that keeps them.

Log files grow by whole entries, even if the disk is full from time to time.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from megaslm.files import sync

_MOST_KEPT_BYTES = 16 << 20


class LogFile:
    """A file of consecutive entries. Entries that cannot be written wait in memory."""

    def __init__(self, path: Path, *, end_bytes: int = 0) -> None:
        """Continues after the file's first `end_bytes`. The rest of the file is cut off."""
        self.path = path
        self.lost_entries = 0
        self._end_bytes = end_bytes
        self._kept = bytearray()
        if path.exists():
            os.truncate(path, end_bytes)

    def keep(self, entry: bytes) -> None:
        """Keeps an entry for the next `flush`. If too many are waiting already, the entry is lost and counted."""
        if len(self._kept) + len(entry) > _MOST_KEPT_BYTES:
            self.lost_entries += 1
        else:
            self._kept += entry

    def flush(self) -> None:
        """Writes the kept entries.

        Raises:
            OSError: they could not be written; the file is unchanged, and the entries are kept.
        """
        # Opened and closed each time: a network file system may report a full disk only on closing.
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            end_bytes = min(self._end_bytes, os.fstat(file).st_size)
            self._write(file, end_bytes)
        finally:
            os.close(file)
        self._end_bytes = end_bytes + len(self._kept)
        self._kept.clear()

    def sync(self) -> None:
        """Writes the kept entries and waits until the whole file is on disk. Raises the errors of `flush`."""
        self.flush()
        sync(self.path)
        sync(self.path.parent)

    def _write(self, file: int, end_bytes: int) -> None:
        written = 0
        try:
            while written < len(self._kept):
                written += os.pwrite(file, memoryview(self._kept)[written:], end_bytes + written)
        except OSError:
            # Readers must not find half an entry.
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
    """Mean loss of the selected targets, in nats: the training loss."""
    all_loss: float | None
    """Mean loss of all valid targets, in nats. None if `slm.measure_unselected` is off, or if one of the losses is NaN
    or infinite."""
    selected_ratio: float
    """Selected targets divided by valid ones."""
    learning_rate: float
    gradient_norm: float
    """Global norm before clipping."""
    tokens_per_second: float
    """Mean over the steps since the last report, all ranks together."""
    threshold: float | None = None
    """Value of the criterion from which targets were selected; the mean if rows or micro-batches have thresholds of
    their own. None if all targets were selected, or there were none."""
    excess_quantiles: dict[str, float] = field(default_factory=dict)
    """Excess loss in nats at 5, 25, 50, 75 and 95% of all valid targets."""
    domain_ratio: dict[str, float] = field(default_factory=dict)
    """Selected targets divided by valid ones, in each domain."""
    domain_tokens: dict[str, int] = field(default_factory=dict)
    """Targets read so far of each domain, over all ranks."""
    domain_passes: dict[str, float] = field(default_factory=dict)
    """How often each domain's rows were read so far, on average."""


def place_of(name: str, domain: str) -> str:
    """What a validation measures, as users read it: the set and the domain, once where both have one name."""
    return name if name == domain else f"{name}/{domain}"


@dataclass(frozen=True)
class ValidationRecord:
    """Losses on one domain of one held-out set. The domain `all` joins the set's domains."""

    step: int
    tokens: int
    name: str
    domain: str
    loss: float
    """Mean loss of all valid targets, in nats."""
    perplexity: float
    targets: int
    """Valid targets measured."""

    @property
    def place(self) -> str:
        """What was measured, as users read it."""
        return place_of(self.name, self.domain)


@dataclass(frozen=True)
class TaskRecord:
    """Answers of the model in training to the items of a task."""

    step: int
    tokens: int
    name: str
    accuracy: float
    items: int
    empty: int
    """Items whose output held no answer."""


@dataclass(frozen=True)
class TaskLossRecord:
    """Losses of the model in training on the items of a task. A number is None if it was not measured, or is NaN or
    infinite."""

    step: int
    tokens: int
    name: str
    items: int
    nats_per_token: float | None
    """Of the written solutions, the mean over items of the loss per token."""
    bits_per_byte: float | None
    """Of all written solutions together."""
    choice_accuracy: float | None
    """Share of items whose right choice is the most likely one."""
    choice_accuracy_per_byte: float | None
    """The same, by the likelihood per byte."""


@dataclass(frozen=True)
class SkippedRecord:
    """An optimiser step that was skipped on all ranks."""

    step: int
    tokens: int
    """Targets read so far, over all ranks, including those of this step."""
    reason: str
    skipped_steps: int
    """Skipped steps of the run so far, including this one."""


@dataclass(frozen=True)
class PaceRecord:
    """The pace of the ranks since the last report."""

    step: int
    slowest_rank: int
    slowest_rank_ratio: float
    """Its time for the same work as a multiple of the middle rank's time; 1 if all ranks are equally fast."""


Record = StepRecord | SkippedRecord | ValidationRecord | TaskRecord | TaskLossRecord | PaceRecord

_KINDS: dict[type[Record], str] = {
    StepRecord: "step",
    SkippedRecord: "skipped",
    ValidationRecord: "validation",
    TaskRecord: "task",
    TaskLossRecord: "task_losses",
    PaceRecord: "pace",
}
_TYPES = {kind: record for record, kind in _KINDS.items()}


class MetricsFile:
    """metrics.jsonl: one JSON object per line, `kind` is a name in `_KINDS`, such as "step"."""

    def __init__(self, path: Path, *, last_step: int, validation_is_due: bool = False) -> None:
        """Opens the file to append. Removes lines of steps after `last_step`, from an interrupted run.

        If `validation_is_due`, the validations of `last_step` are removed too: they are made again.
        """
        self.name = str(path)
        self._file = LogFile(path, end_bytes=_kept_bytes(path, last_step, validation_is_due=validation_is_due))

    @property
    def lost_entries(self) -> int:
        """Lines for which there was no room, neither on the disk nor in memory."""
        return self._file.lost_entries

    def write(self, records: Sequence[Record]) -> None:
        """Appends and flushes.

        Raises:
            OSError: the records could not be written; they are kept for the next call.
        """
        for record in records:
            self._file.keep(json.dumps({"kind": _KINDS[type(record)], **_jsonable(record)}).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Waits until the whole file is on disk. Raises OSError where that fails."""
        self._file.sync()


def read_validations(path: Path) -> list[ValidationRecord]:
    """The validation records of a metrics.jsonl, in order."""
    records = [_record(line) for line in _lines(path) if line["kind"] == "validation"]
    return [record for record in records if isinstance(record, ValidationRecord)]


def newest_records(path: Path) -> tuple[StepRecord | None, list[ValidationRecord]]:
    """The last step of a metrics.jsonl, and the last validation of each domain of each set.

    A last line that is still being written is left out. A missing file has no records.
    """
    last_step: bytes | None = None
    validations: dict[tuple[str, str], ValidationRecord] = {}
    with path.open("rb") if path.exists() else BytesIO() as file:
        for text in file:
            # Steps are many, and only the last one is parsed.
            if text.startswith(b'{"kind": "step"') and text.endswith(b"\n"):
                last_step = text
            elif text.startswith(b'{"kind": "validation"') and text.endswith(b"\n"):
                record = _record(json.loads(text))
                assert isinstance(record, ValidationRecord)
                validations[record.name, record.domain] = record
    step = None if last_step is None else _record(json.loads(last_step))
    assert step is None or isinstance(step, StepRecord)
    return step, list(validations.values())


def read_step(path: Path, step: int) -> list[Record]:
    """All records of one step in a metrics.jsonl, in order."""
    return [_record(line) for line in _lines(path) if line["step"] == step]


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _record(line: Mapping[str, Any]) -> Record:
    values = {key: value for key, value in line.items() if key != "kind"}
    if line["kind"] not in ("step", "task_losses"):
        # `_jsonable` writes NaN and infinity as null. In the other two, null may also mean "not measured".
        values = {key: math.nan if value is None else value for key, value in values.items()}
    return _TYPES[line["kind"]](**values)


def _jsonable(record: Record) -> dict[str, object]:
    """The record's values. NaN and infinity, which JSON lacks, become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(record).items()
    }


def _kept_bytes(path: Path, last_step: int, *, validation_is_due: bool) -> int:
    """The size of the lines up to that step's last. Steps never decrease in a file; a step's validation comes last."""
    kept_bytes = 0
    if last_step == 0 or not path.exists():
        return kept_bytes
    with path.open("rb") as file:
        for text in file:
            # A killed process may have left the last line half written.
            if not text.endswith(b"\n"):
                break
            try:
                line = json.loads(text)
            except ValueError:
                # After a power failure, unsynced bytes may come back as zeros, with whole lines after them.
                break
            is_validation = line["kind"] in ("validation", "task")
            is_made_again = validation_is_due and is_validation and line["step"] == last_step
            if line["step"] > last_step or is_made_again:
                break
            kept_bytes += len(text)
    return kept_bytes
