"""The records of a run as plain values, and metrics.jsonl, the file that keeps them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict

from megaslm.observe.log_file import LogFile

EXCESS_EDGES_NATS = tuple(quarter / 4 for quarter in range(-16, 17))
"""The edges of the bins of `ReportRecord.excess_counts`. Excess losses beyond ±4 nats are in the outer bins."""


class Sample(TypedDict):
    """The beginning of a probe row, as text."""

    domain: str
    row: int
    """Its number in the domain."""
    stretches: list[str]
    """Stretches of its text: by turns one whose tokens are not kept, maybe empty, and one whose tokens are kept."""


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step."""

    step: int
    """Counted from 1."""
    tokens: int
    """Targets read so far, over all ranks."""
    loss: float
    """Mean loss of the selected targets, in nats, without the weights of `slm.weight`: the training loss."""
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
    """Value of the criterion from which targets were selected; the mean if rows, micro-batches or domains have
    thresholds of their own. None if all targets were selected, there were none, or they were drawn."""
    excess_quantiles: dict[str, float] = field(default_factory=dict)
    """Excess loss in nats at 5, 25, 50, 75 and 95% of all valid targets."""
    domain_ratio: dict[str, float] = field(default_factory=dict)
    """Selected targets divided by valid ones, in each domain."""
    domain_tokens: dict[str, int] = field(default_factory=dict)
    """Targets read so far of each domain, over all ranks."""
    domain_passes: dict[str, float] = field(default_factory=dict)
    """How often each domain's rows were read so far, on average."""
    mean_weight: float | None = None
    """The sum of the weights of `slm.weight` divided by the number of selected targets. None if it is hard."""
    backward_cosine: float | None = None
    """Under `slm.backward: filtered`, of the exact gradient and the one with tokens left out: the smaller one of the
    parameters of the upper layers, and of the hidden states that enter them. None where they were not compared."""


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
    """Its time for the same work as a multiple of the ranks' median time; 1 if all ranks are equally fast."""


@dataclass(frozen=True)
class ReportRecord:
    """The steps since the last report, read from the device together. Times and memory are those of the first rank."""

    step: int
    """The newest of the steps."""
    tokens: int
    steps: int
    """How many steps these are, skipped ones included."""
    selected_tokens: int
    """Targets trained on so far, over all ranks."""
    keep_ratio: float | None
    """The share of targets that the newest step was to select. None if the objective selects nothing, from a fixed
    threshold on, or a share of its own in each domain."""
    position_ratio: list[float | None]
    """Selected targets divided by valid ones, in equally long bands of the row, the first positions first. None for a
    band without valid targets."""
    excess_counts: list[int]
    """Valid targets by their excess loss: the numbers between two neighbours of `EXCESS_EDGES_NATS`. Empty where the
    excess loss is not known."""
    phase_seconds: dict[str, float]
    """Mean seconds per step of each phase. Together they are the step."""
    mfu: float | None
    """Model FLOPs utilisation where each token attends to its whole row. None if the device's peak is unknown."""
    mfu_of_documents: float | None
    """The same, where each token attends to its own document only."""
    device_memory_bytes: int | None
    """The most that tensors have taken on the GPU since the start. None on a CPU."""
    host_memory_bytes: int
    """The most physical memory that the process has taken since the start."""
    begun_at: float
    """When the run was first started, in seconds since 1970."""
    seconds_in_steps: float
    """Of all steps up to this one; steps that were lost and made again count once."""
    effective_time_ratio: float
    """`seconds_in_steps` divided by the time since the first start: the rest is checkpoints, validation, pauses, starts
    and lost steps."""
    second_pass_ratio: float | None = None
    """Targets with a forward pass without gradients before the one that trains, divided by all targets of the steps.
    Earlier builds did not tell."""


@dataclass(frozen=True)
class SaveRecord:
    """A checkpoint that was completed."""

    step: int
    """The step after which it was complete."""
    saved_step: int
    """The step that it holds."""
    halted_seconds: float
    """Seconds in which training stood still, while the state was copied."""
    seconds: float
    """Seconds from the begin of the save until the checkpoint was complete."""


@dataclass(frozen=True)
class ProbeRecord:
    """What the run's selection keeps of the probe rows."""

    step: int
    tokens: int
    churn: float | None
    """Share of the kept targets that were not kept at the measurement before. None at the first measurement, or if the
    run trains on all targets."""
    samples: list[Sample]


Record = (
    StepRecord
    | SkippedRecord
    | ValidationRecord
    | TaskRecord
    | TaskLossRecord
    | PaceRecord
    | ReportRecord
    | SaveRecord
    | ProbeRecord
)

_KINDS: dict[type[Record], str] = {
    StepRecord: "step",
    SkippedRecord: "skipped",
    ValidationRecord: "validation",
    TaskRecord: "task",
    TaskLossRecord: "task_losses",
    PaceRecord: "pace",
    ReportRecord: "report",
    SaveRecord: "save",
    ProbeRecord: "probe",
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


def last_report(path: Path, last_step: int) -> ReportRecord | None:
    """The last report of a metrics.jsonl up to a step. None where it has none, as older files."""
    found = None
    with path.open("rb") if path.exists() else BytesIO() as file:
        for text in file:
            if text.startswith(b'{"kind": "report"') and text.endswith(b"\n"):
                record = _record(json.loads(text))
                assert isinstance(record, ReportRecord)
                found = record if record.step <= last_step else found
    return found


def read_step(path: Path, step: int) -> list[Record]:
    """All records of one step in a metrics.jsonl, in order."""
    return [_record(line) for line in _lines(path) if line["step"] == step]


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _record(line: Mapping[str, Any]) -> Record:
    values = {key: value for key, value in line.items() if key != "kind"}
    if line["kind"] in ("skipped", "validation", "task", "pace"):
        # `_jsonable` writes NaN and infinity as null. In other records, null may also mean "not measured".
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
