"""TensorBoard events of a run: the only file that imports TensorBoard.

This module writes the events itself, because the thread of TensorBoard's own writer dies when a disk is full.
"""

import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from megaslm.observe.records import LogFile, PaceRecord, Record, SkippedRecord, StepRecord, TaskLossRecord, TaskRecord

_FILE_VERSION = "brain.Event:2"
_BEGUN = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
# Other writers in the folder number files without leading zeros, or not at all.
_OURS = re.compile(_BEGUN.pattern + r".+\.\d+\.\d{6}")
_MEANINGS = {
    "loss/selected": "Mean loss of the selected targets, in nats: the training loss. It does not compare with CLM's.",
    "loss/all": "Mean loss of all valid targets, in nats. It compares SLM with CLM.",
    "loss_validation": "Mean loss of all targets of held-out text, in nats.",
    "accuracy": "Share of the task's items that the model in training answers right.",
    "loss_task": "Mean loss per token of the task's written solutions, in nats.",
    "bits_per_byte": "Loss of the task's written solutions in bits per byte.",
    "choice_accuracy": "Share of the task's items whose right choice is the most likely one.",
    "choice_accuracy_per_byte": "Share of the task's items whose right choice is the most likely one per byte.",
    "perplexity": "Perplexity of held-out text: e to the power of its mean loss.",
    "train/selected_ratio": "Selected targets divided by valid ones.",
    "train/learning_rate": "Learning rate of the step.",
    "train/gradient_norm": "Global norm of the gradient before clipping.",
    "train/tokens": "Targets read so far, over all ranks.",
    "speed/tokens_per_second": "Targets per second since the last report, all ranks together.",
    "speed/slowest_rank_ratio": "Time of the slowest rank for the same work, divided by that of the middle rank.",
    "selection/threshold": "Value of the criterion from which targets were selected.",
    "selection": "Excess loss, in nats, that this percentage of all valid targets is below.",
    "selection_ratio": "Selected targets of the domain divided by its valid ones.",
    "tokens_of_domain": "Targets of the domain read so far, over all ranks.",
    "passes_of_domain": "How often the rows of the domain were read so far, on average.",
    "guard/skipped_steps": "Skipped steps of the run so far.",
}
"""The description of a tag or, where it has none of its own, of its group: the part before the first slash."""
_HEADER = struct.Struct("<QI")
_CHECKSUM_BYTES = 4
_numbers = itertools.count()


class TensorBoard:
    """Writes records as scalars, against the step."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Begins a new event file. Events of `first_step` and later, from an interrupted run, are removed.

        Files of other writers in the folder are not changed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.name = str(folder)
        self._described: set[str] = set()
        self._file = LogFile(_next_file(folder))
        self._keep(Event(file_version=_FILE_VERSION))
        if tags := _take_out(folder, first_step):
            # For servers that have already read the removed events.
            self._keep(_without_points(tags, first_step))
        self._keep(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    @property
    def lost_entries(self) -> int:
        """Events for which there was no room, neither on the disk nor in memory."""
        return self._file.lost_entries

    def write(self, records: Sequence[Record]) -> None:
        """Adds the records' scalars and flushes.

        Raises:
            OSError: the events could not be written; they are kept for the next call.
        """
        for record in records:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record).items()]
            for value in values:
                # Readers keep the first one of a tag.
                if value.tag not in self._described:
                    value.metadata.CopyFrom(_metadata(value.tag))
                    self._described.add(value.tag)
            self._keep(Event(step=record.step, summary=Summary(value=values)))
        self._file.flush()

    def sync(self) -> None:
        """Waits until the whole file is on disk. Raises OSError where that fails."""
        self._file.sync()

    def _keep(self, event: Event) -> None:
        event.wall_time = time.time()
        framed = BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        self._file.keep(framed.getvalue())


def _next_file(folder: Path) -> Path:
    """A name that sorts after all others: TensorBoard reads a folder's files in the order of their names."""
    begun = [int(found[1]) for path in folder.iterdir() if (found := _BEGUN.match(path.name))]
    # Not by the clock alone: the clock of the run's earlier host may have been ahead of this one.
    seconds = max([int(time.time()), *(second + 1 for second in begun)])
    return folder / f"events.out.tfevents.{seconds:010}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06}"


def _take_out(folder: Path, step: int) -> set[str]:
    """Cuts our files off before that step's first scalar. Returns the tags that lose scalars."""
    tags: set[str] = set()
    for path in sorted((path for path in folder.iterdir() if _OURS.fullmatch(path.name)), reverse=True):
        end_bytes, its_tags, begun_at = _behind(path, step)
        if its_tags:
            # In place: no process writes into it any more, and a reader beyond the new end finds nothing more there.
            os.truncate(path, end_bytes)
        tags |= its_tags
        # Version 0.1.0 left discarded events in the earlier files.
        step = min(step, begun_at)
    return tags


def _behind(path: Path, step: int) -> tuple[int, set[str], int]:
    """The offset of that step's first scalar in a file, the tags from there on, and the step that the file began with.

    Steps never decrease in a file.
    """
    end_bytes, tags, begun_at = 0, set[str](), step
    for begin, event in _events(path):
        if event.session_log.status == SessionLog.START:
            begun_at = event.step
        if event.step >= step and event.HasField("summary"):
            end_bytes = end_bytes if tags else begin
            tags.update(value.tag for value in event.summary.value)
    return end_bytes, tags, begun_at


def _events(path: Path) -> Iterator[tuple[int, Event]]:
    """All whole events of a file, each with its offset. A killed process may have left a partial last event."""
    begin, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while begin + _HEADER.size < size:
            (length, _) = _HEADER.unpack(file.read(_HEADER.size))
            end = begin + _HEADER.size + length + _CHECKSUM_BYTES
            if end > size:
                return
            content = file.read(length + _CHECKSUM_BYTES)[:length]
            # An event that cannot be decoded is not shown by any reader either.
            with suppress(DecodeError):
                yield begin, Event.FromString(content)
            begin = end


def _without_points(tags: Iterable[str], step: int) -> Event:
    """Removes the tags' points from that step on in a running data server.

    The server ignores session logs. A value makes it drop its tag's points of the same and later steps, and it does not
    show NaN. Other readers drop that value too, at the START that follows.
    """
    nothing = TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[b""])
    values = [Summary.Value(tag=tag, metadata=_metadata(tag), tensor=nothing) for tag in sorted(tags)]
    return Event(step=step, summary=Summary(value=values))


def _metadata(tag: str) -> SummaryMetadata:
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"),
        data_class=DATA_CLASS_SCALAR,
        summary_description=_MEANINGS.get(tag) or _MEANINGS.get(tag.partition("/")[0], ""),
    )


def _scalars(record: Record) -> dict[str, float]:
    """Values by tag. TensorBoard sorts tags by the part before "/" and opens the first two: losses, alarms if any."""
    match record:
        case StepRecord():
            return _step_scalars(record)
        case SkippedRecord():
            return {"guard/skipped_steps": record.skipped_steps}
        case TaskRecord():
            return {f"accuracy/{record.name}": record.accuracy}
        case TaskLossRecord():
            return _task_losses(record)
        case PaceRecord():
            return {"speed/slowest_rank_ratio": record.slowest_rank_ratio}
        case _:
            return {f"loss_validation/{record.place}": record.loss, f"perplexity/{record.place}": record.perplexity}


def _task_losses(record: TaskLossRecord) -> dict[str, float]:
    scalars = {
        f"loss_task/{record.name}": record.nats_per_token,
        f"bits_per_byte/{record.name}": record.bits_per_byte,
        f"choice_accuracy/{record.name}": record.choice_accuracy,
        f"choice_accuracy_per_byte/{record.name}": record.choice_accuracy_per_byte,
    }
    return {tag: value for tag, value in scalars.items() if value is not None}


def _step_scalars(record: StepRecord) -> dict[str, float]:
    scalars = {
        "loss/selected": record.loss,
        "loss/all": record.all_loss,
        "train/selected_ratio": record.selected_ratio,
        "train/learning_rate": record.learning_rate,
        "train/gradient_norm": record.gradient_norm,
        "train/tokens": record.tokens,
        "speed/tokens_per_second": record.tokens_per_second,
        "selection/threshold": record.threshold,
        **{f"selection/excess_{name}": value for name, value in record.excess_quantiles.items()},
        **{f"selection_ratio/{domain}": ratio for domain, ratio in record.domain_ratio.items()},
        **{f"tokens_of_domain/{domain}": tokens for domain, tokens in record.domain_tokens.items()},
        **{f"passes_of_domain/{domain}": passes for domain, passes in record.domain_passes.items()},
    }
    return {tag: value for tag, value in scalars.items() if value is not None}
