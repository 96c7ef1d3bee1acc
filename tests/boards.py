"""Boards of TensorBoard that tests write, and what its readers show of them."""

from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util.tensor_util import make_ndarray

from megaslm.observe.records import (
    PaceRecord,
    SkippedRecord,
    StepRecord,
    ValidationRecord,
)
from megaslm.observe.run_description import RunDescription
from megaslm.observe.tensorboard import TensorBoard
from tests.events import Points

LOSS, VALIDATION, SKIPPED, PACE = (
    "loss/selected",
    "loss_validation/held/a",
    "guard/skipped_steps",
    "speed/slowest_rank_ratio",
)


def step(number: int, loss: float = 1.5) -> StepRecord:
    return StepRecord(number, 10 * number, loss, 2.5, 0.6, 1e-3, 0.7, 100.0)


def validation(number: int, loss: float = 2.0) -> ValidationRecord:
    return ValidationRecord(number, 10 * number, "held", "a", loss, 7.5, 50)


def skipped(number: int, skipped_steps: int) -> SkippedRecord:
    return SkippedRecord(number, 10 * number, "2 losses are NaN", skipped_steps)


CUT_OFF = [
    *(validation(0), step(1), step(2), validation(2), PaceRecord(2, 0, 1.25)),
    *(step(3), skipped(4, 1), PaceRecord(4, 0, 1.5), validation(4), step(5)),
]


def board(folder: Path, *, first_step: int, description: RunDescription | None = None) -> TensorBoard:
    return TensorBoard(folder, first_step=first_step, tokens_per_step=10, description=description)


def accumulated(events: EventAccumulator) -> Points:
    events.Reload()
    tags = events.Tags()["scalars"]
    shown = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    return {tag: points for tag, points in shown.items() if points}


def multiplexed(events: EventMultiplexer) -> Points:
    """As the server that is started with --load_fast=false reads, the tags that it has no points of left out."""
    events.Reload()
    tags = events.PluginRunToTagToContent("scalars")["run"]
    shown = {
        tag: [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors("run", tag)]
        for tag in tags
    }
    return {tag: points for tag, points in shown.items() if points}


def readers(folder: Path) -> list[Callable[[], Points]]:
    accumulator, multiplexer = EventAccumulator(str(folder)), EventMultiplexer().AddRun(str(folder), "run")
    return [lambda: accumulated(accumulator), lambda: multiplexed(multiplexer)]


def steps_of(points: Points, *tags: str) -> list[list[int]]:
    return [[step for step, _ in points.get(tag, [])] for tag in tags]
