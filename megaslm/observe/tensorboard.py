"""TensorBoard events of a run: the only file that imports TensorBoard.

This module writes the events itself, because the thread of TensorBoard's own writer dies when a disk is full.
"""

import html
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from megaslm.observe.charts import Band, Layout, Lines, layout_of
from megaslm.observe.display import visible_on_one_line
from megaslm.observe.log_file import LogFile
from megaslm.observe.records import EXCESS_EDGES_NATS, ProbeRecord, Record, ReportRecord, Sample
from megaslm.observe.run_description import RunDescription
from megaslm.observe.scalars import Compared, against_tokens, meaning_of, scalars_of

AGAINST_TOKENS = "tokens"
"""The folder, within that of the events, of the events whose step is the number of tokens read."""
CONFIG_TEXT = "config"
EXCESS_HISTOGRAM = "selection/excess"
SAMPLE_TEXT = "selected_text"
_FILE_VERSION = "brain.Event:2"
_BEGUN = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
# Other writers in the folder number files without leading zeros, or not at all.
_OURS = re.compile(_BEGUN.pattern + r".+\.\d+\.\d{6}")
_HEADER = struct.Struct("<QI")
_CHECKSUM_BYTES = 4
_numbers = itertools.count()
# What a running server reads once: it need not be removed, and every attempt writes it again.
_WRITTEN_ONCE = {CONFIG_SUMMARY_TAG, SESSION_START_INFO_TAG}
_TEXTS = (CONFIG_TEXT, SAMPLE_TEXT)
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!])")
_EDGES = re.compile(r"^(\s*)(.*?)(\s*)$", re.DOTALL)


class TensorBoard:
    """Writes records as scalars, histograms and texts against the step, and some scalars against tokens, too."""

    def __init__(
        self, folder: Path, *, first_step: int, tokens_per_step: int, description: RunDescription | None = None
    ) -> None:
        """Begins new event files. Events of `first_step` and later, from an interrupted run, are removed.

        Files of other writers in the folder are not changed.
        """
        self.name = str(folder)
        # Of their own: readers take a session's start for the number from which on all points of a folder are removed.
        self._by_tokens = _Events(folder / AGAINST_TOKENS, first_step=first_step * tokens_per_step)
        self._by_step = _Events(folder, first_step=first_step)
        self._laid_out: set[str] = set()
        self._layout: Layout = {}
        self._keep_layout(0)
        if description is not None:
            # The name of the run folder. Otherwise it is a hash of the settings, and runs of equal settings are one.
            trial = "/".join(folder.absolute().parts[-2:])
            self._by_step.keep(0, hparams_pb(description.settings, trial_id=trial).value)
            self._by_step.keep(first_step, [_text(CONFIG_TEXT, code_block(description.text, "yaml"))])

    @property
    def lost_entries(self) -> int:
        """Events for which there was no room, neither on the disk nor in memory."""
        return self._by_step.lost_entries + self._by_tokens.lost_entries

    def write(self, records: Sequence[Record]) -> None:
        """Adds the records and flushes.

        Raises:
            OSError: the events could not be written; they are kept for the next call.
        """
        for record in records:
            self._by_step.keep(record.step, [*_scalars(scalars_of(record)), *_pictures(record)])
            if isinstance(record, Compared):
                self._by_tokens.keep(record.tokens, _scalars(against_tokens(record)))
        if records:
            self._keep_layout(records[-1].step)
        self._by_step.flush()
        self._by_tokens.flush()

    def _keep_layout(self, step: int) -> None:
        """Adds the charts of all numbers so far, if these have changed. Viewers show the newest layout."""
        numbers = self._by_step.numbers | self._by_tokens.numbers
        if numbers == self._laid_out:
            return
        self._laid_out, before = numbers, self._layout
        self._layout = layout_of(numbers)
        if self._layout != before:
            self._by_step.keep(step, [_layout_value(self._layout)])

    def sync(self) -> None:
        """Waits until the whole files are on disk. Raises OSError where that fails."""
        self._by_step.sync()
        self._by_tokens.sync()


class _Events:
    """The events of one folder, in the order of their steps."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._described: set[str] = set()
        self._file = LogFile(_next_file(folder))
        self._keep(Event(file_version=_FILE_VERSION))
        # The tags of all numbers, those of earlier attempts included.
        removed, self.numbers = _take_out(folder, first_step)
        if removed:
            # For servers that have already read the removed events.
            self._keep(_without_points(removed, first_step))
        self._keep(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    @property
    def lost_entries(self) -> int:
        return self._file.lost_entries

    def keep(self, step: int, values: Iterable[Summary.Value]) -> None:
        """Adds an event, which `flush` writes."""
        values = list(values)
        for value in values:
            # Readers keep the first one of a tag. Where the value brings one, it holds more than a description.
            if value.tag not in self._described and not value.HasField("metadata"):
                value.metadata.CopyFrom(_metadata(value.tag))
            self._described.add(value.tag)
        self.numbers |= _numbers_in(values)
        if values:
            self._keep(Event(step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
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


def _take_out(folder: Path, step: int) -> tuple[set[str], set[str]]:
    """Cuts our files off before that step's first value. Returns the tags that lose values, and those of the numbers
    that are left."""
    tags, left = set[str](), set[str]()
    for path in sorted((path for path in folder.iterdir() if _OURS.fullmatch(path.name)), reverse=True):
        end_bytes, its_tags, its_left, begun_at = _behind(path, step)
        if its_tags:
            # In place: no process writes into it any more, and a reader beyond the new end finds nothing more there.
            os.truncate(path, end_bytes)
        tags |= its_tags
        left |= its_left
        # Version 0.1.0 left discarded events in the earlier files.
        step = min(step, begun_at)
    return tags, left


def _behind(path: Path, step: int) -> tuple[int, set[str], set[str], int]:
    """The offset of that step's first value in a file, the tags from there on, those of the numbers before it, and the
    step that the file began with.

    Steps never decrease in a file, but for what is written once.
    """
    end_bytes, tags, left, begun_at = 0, set[str](), set[str](), step
    for begin, event in _events(path):
        if event.session_log.status == SessionLog.START:
            begun_at = event.step
        if event.step >= step and event.HasField("summary"):
            end_bytes = end_bytes if tags else begin
            tags.update(value.tag for value in event.summary.value)
        elif not tags:
            left |= _numbers_in(event.summary.value)
    return end_bytes, tags, left, begun_at


def _numbers_in(values: Iterable[Summary.Value]) -> set[str]:
    """The tags of those that are numbers."""
    return {value.tag for value in values if value.HasField("simple_value")}


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
    show a value of a kind that it cannot read: the second one, which takes the place of the first. Other readers pass
    over that kind. They remove the first one, which they need to know the tag, at the START that follows.
    """
    removed = sorted(set(tags) - _WRITTEN_ONCE)
    known = [Summary.Value(tag=tag, metadata=_metadata(tag), tensor=_string(b"")) for tag in removed]
    unreadable = [Summary.Value(tag=tag, obsolete_old_style_histogram=b"") for tag in removed]
    return Event(step=step, summary=Summary(value=[*known, *unreadable]))


def _metadata(tag: str) -> SummaryMetadata:
    plugin = "histograms" if tag == EXCESS_HISTOGRAM else "text" if tag.startswith(_TEXTS) else "scalars"
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin),
        data_class=DATA_CLASS_SCALAR if plugin == "scalars" else DATA_CLASS_TENSOR,
        summary_description=meaning_of(tag),
    )


def _scalars(values: Mapping[str, float]) -> list[Summary.Value]:
    return [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]


def _pictures(record: Record) -> Iterator[Summary.Value]:
    """What is more than a number: the histogram of a report, the texts of a measurement of the probe rows."""
    if isinstance(record, ReportRecord) and any(record.excess_counts):
        yield _histogram(record.excess_counts)
    if isinstance(record, ProbeRecord):
        for number, sample in enumerate(record.samples, start=1):
            yield _text(f"{SAMPLE_TEXT}/{number}", sample_text(sample))


def _histogram(counts: Sequence[int]) -> Summary.Value:
    """The bins from the first to the last one that holds something: left and right edge, and count."""
    bins = [(left, right, count) for (left, right), count in zip(pairwise(EXCESS_EDGES_NATS), counts, strict=True)]
    filled = [place for place, count in enumerate(counts) if count]
    shown = np.array(bins[filled[0] : filled[-1] + 1], np.float64)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shown.shape])
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=shown.tobytes())
    return Summary.Value(tag=EXCESS_HISTOGRAM, tensor=tensor)


def _text(tag: str, markdown: str) -> Summary.Value:
    return Summary.Value(tag=tag, tensor=_string(markdown.encode()))


def _string(content: bytes) -> TensorProto:
    return TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[content])


def _layout_value(layout: Layout) -> Summary.Value:
    content = layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=[_chart(chart) for chart in charts])
            for title, charts in layout.items()
        ]
    )
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"), data_class=DATA_CLASS_TENSOR
    )
    return Summary.Value(tag=CONFIG_SUMMARY_TAG, metadata=metadata, tensor=_string(content.SerializeToString()))


def _chart(chart: Lines | Band) -> layout_pb2.Chart:
    if isinstance(chart, Lines):
        return layout_pb2.Chart(title=chart.title, multiline=layout_pb2.MultilineChartContent(tag=chart.patterns))
    series = layout_pb2.MarginChartContent.Series(value=chart.middle, lower=chart.lower, upper=chart.upper)
    return layout_pb2.Chart(title=chart.title, margin=layout_pb2.MarginChartContent(series=[series]))


def code_block(text: str, language: str) -> str:
    """The text as it stands. It must hold no line of three backticks, which no YAML of a configuration does."""
    return f"```{language}\n{text}\n```"


def sample_text(sample: Sample) -> str:
    """A probe row with its kept tokens in bold. Line ends are visible signs."""
    stretches = (
        _bold(stretch) if place % 2 else _escaped(visible_on_one_line(stretch))
        for place, stretch in enumerate(sample["stretches"])
    )
    return f"{_escaped(sample['domain'])}, row {sample['row']}:\n\n{''.join(stretches).lstrip()}"


def _bold(text: str) -> str:
    # Spaces beside the asterisks would leave them as they are.
    before, inner, after = _EDGES.fullmatch(visible_on_one_line(text)).groups()  # type: ignore[union-attr]
    return f"{before}**{_escaped(inner)}**{after}" if inner else before


def _escaped(text: str) -> str:
    return html.escape(_SPECIAL.sub(r"\\\1", text), quote=False)
