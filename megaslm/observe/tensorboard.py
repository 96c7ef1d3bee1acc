"""TensorBoard events of a run: the only file that knows TensorBoard.

The events are written here and not by its own writer, whose thread dies for good when a disk is full.
"""

import itertools
import os
import socket
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from megaslm.observe.log_file import LogFile
from megaslm.observe.records import PaceRecord, Record, SkippedRecord, StepRecord

_FILE_VERSION = "brain.Event:2"
_numbers = itertools.count()


class TensorBoard:
    """Writes records as scalars, against the step."""

    def __init__(self, folder: Path, *, hidden_from: int) -> None:
        """Begins a new event file; what an interrupted run wrote of the step `hidden_from` and later ones is hidden."""
        folder.mkdir(parents=True, exist_ok=True)
        self.name = str(folder)
        # TensorBoard reads a folder's files in the order of their names.
        place = f"{socket.gethostname()}.{os.getpid()}"
        self._file = LogFile(folder / f"events.out.tfevents.{time.time():010.0f}.{place}.{next(_numbers):06d}")
        self._keep(Event(file_version=_FILE_VERSION))
        self._keep(Event(step=hidden_from, session_log=SessionLog(status=SessionLog.START)))

    @property
    def lost_entries(self) -> int:
        """Events that found no room, neither on the disk nor in memory."""
        return self._file.lost_entries

    def write(self, records: Sequence[Record]) -> None:
        """Adds the records' scalars and flushes.

        Raises:
            OSError: they could not be written; they are kept for the next call.
        """
        for record in records:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record).items()]
            self._keep(Event(step=record.step, summary=Summary(value=values)))
        self._file.flush()

    def sync(self) -> None:
        """Waits until all of it has reached the disk; raises OSError where it cannot."""
        self._file.sync()

    def _keep(self, event: Event) -> None:
        event.wall_time = time.time()
        framed = BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        self._file.keep(framed.getvalue())


def _scalars(record: Record) -> dict[str, float]:
    """By tag. TensorBoard sorts by what is before the stroke and opens the first two: the losses, and alarms if any."""
    match record:
        case StepRecord():
            return _step_scalars(record)
        case SkippedRecord():
            return {"guard/skipped_steps": record.skipped_steps}
        case PaceRecord():
            return {"speed/slowest_rank_ratio": record.slowest_rank_ratio}
        case _:
            place = f"{record.name}/{record.domain}"
            return {f"loss_validation/{place}": record.loss, f"perplexity/{place}": record.perplexity}


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
