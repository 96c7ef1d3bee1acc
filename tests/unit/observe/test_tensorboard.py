import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util.tensor_util import make_ndarray

from megaslm.observe.records import PaceRecord, SkippedRecord, StepRecord, ValidationRecord
from megaslm.observe.tensorboard import TensorBoard
from tests.events import Points, points_in

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


def test_a_step_tells_of_its_selection_where_there_was_one(tmp_path: Path) -> None:
    selective = replace(step(1), threshold=0.25, excess_quantiles={"p50": 0.5}, domain_ratio={"a": 0.7, "b": 0.4})
    unmeasured = replace(step(2), all_loss=None, domain_tokens={"web/a": 48}, domain_passes={"web/a": 1.5})
    TensorBoard(tmp_path, first_step=0).write([selective, unmeasured])
    tags = {tag: [number for number, _ in points] for tag, points in points_in(tmp_path).items()}
    assert tags["selection/threshold"] == tags["selection/excess_p50"] == [1]
    assert tags["selection_ratio/a"] == tags["selection_ratio/b"] == [1]
    assert tags["loss/all"] == [1]
    assert tags["train/selected_ratio"] == [1, 2]
    assert tags["tokens_of_domain/web/a"] == tags["passes_of_domain/web/a"] == [2]


def test_the_losses_are_what_tensorboard_opens_with(tmp_path: Path) -> None:
    told = replace(step(1), threshold=0.25, domain_ratio={"a": 0.7}, domain_tokens={"a": 48}, domain_passes={"a": 1.5})
    TensorBoard(tmp_path, first_step=0).write([told, validation(1), PaceRecord(1, 0, 1.0)])
    groups = sorted({tag.partition("/")[0] for tag in points_in(tmp_path)})
    assert groups[:2] == ["loss", "loss_validation"]


def test_every_tag_has_a_description(tmp_path: Path) -> None:
    told = replace(
        step(1),
        threshold=0.25,
        excess_quantiles={"p50": 0.5},
        domain_ratio={"a": 0.7},
        domain_tokens={"a": 48},
        domain_passes={"a": 1.5},
    )
    TensorBoard(tmp_path, first_step=0).write([told, validation(1), skipped(2, 1), PaceRecord(2, 0, 1.0)])
    events = EventAccumulator(str(tmp_path)).Reload()
    described = {tag: events.SummaryMetadata(tag).summary_description for tag in points_in(tmp_path)}
    assert len(described) == 16
    assert [tag for tag, meaning in described.items() if not meaning] == []


def test_a_set_of_the_name_of_its_domain_is_named_once(tmp_path: Path) -> None:
    TensorBoard(tmp_path, first_step=0).write([replace(validation(1), name="a"), replace(validation(1), domain="b")])
    assert set(points_in(tmp_path)) == {
        f"{what}/{of}" for what in ("loss_validation", "perplexity") for of in ("a", "held/b")
    }


def test_a_skipped_step_counts_those_before_it(tmp_path: Path) -> None:
    TensorBoard(tmp_path, first_step=0).write([step(1), skipped(2, 1), skipped(4, 2)])
    assert points_in(tmp_path)[SKIPPED] == [(2, 1.0), (4, 2.0)]


def test_numbers_beyond_float32_are_infinite(tmp_path: Path) -> None:
    TensorBoard(tmp_path, first_step=0).write([replace(validation(1), perplexity=math.exp(700.0))])
    assert points_in(tmp_path)["perplexity/held/a"] == [(1, math.inf)]


@pytest.mark.parametrize(
    ("first_step", "kept"),
    [
        (6, [[1, 2, 3, 5], [0, 2, 4], [4], [2, 4]]),
        (4, [[1, 2, 3], [0, 2], [], [2]]),
        (2, [[1], [0], [], []]),
        # Begun anew, as before its first checkpoint.
        (0, [[], [], [], []]),
    ],
)
def test_what_is_taken_back_is_in_no_file_and_leaves_every_reader(
    tmp_path: Path, first_step: int, kept: list[list[int]]
) -> None:
    """Those that have read it before, too."""
    TensorBoard(tmp_path, first_step=0).write(CUT_OFF)
    before = readers(tmp_path)
    for read in before:
        assert steps_of(read(), LOSS, VALIDATION) == [[1, 2, 3, 5], [0, 2, 4]]
    resumed = TensorBoard(tmp_path, first_step=first_step)
    resumed.write([])
    tags = LOSS, VALIDATION, SKIPPED, PACE
    assert steps_of(points_in(tmp_path), *tags) == kept
    for read in [*before, *readers(tmp_path)]:
        assert steps_of(read(), *tags) == kept
    resumed.write([validation(6, 9.0), skipped(7, 1)])
    for read in [lambda: points_in(tmp_path), *before, *readers(tmp_path)]:
        shown = read()
        assert steps_of(shown, LOSS, VALIDATION, SKIPPED) == [kept[0], [*kept[1], 6], [*kept[2], 7]]
        assert shown[VALIDATION][-1] == (6, 9.0)


def test_a_run_may_be_resumed_again_and_again(tmp_path: Path) -> None:
    """Further on, at the same step, before it, and where nothing was written since."""
    TensorBoard(tmp_path, first_step=0).write([validation(0), step(1), step(2), step(3)])
    before = readers(tmp_path)
    for attempt, (first, last) in enumerate([(3, 6), (5, 6), (5, 8), (2, 4), (2, 1), (4, 9)], start=2):
        resumed = TensorBoard(tmp_path, first_step=first)
        resumed.write([step(number, float(attempt)) for number in range(first, last + 1)])
        for read in before:
            assert steps_of(read(), VALIDATION) == [[0]]
    expected = [(1, 1.5), *((number, 7.0) for number in range(4, 10))]
    for read in [lambda: points_in(tmp_path), *before, *readers(tmp_path)]:
        assert read()[LOSS] == expected


@pytest.mark.parametrize(
    "name",
    [
        "events.out.tfevents.1700000000.host-1.4711.0",
        "events.out.tfevents.1700000000.host-1.4711.0.v2",
        "events.out.tfevents.1700000000.host-1.4711.123.evaluation",
        "events.out.tfevents.1700000000.host-1.profile-empty",
        "notes.txt",
    ],
)
def test_files_of_others_stay_as_they_are(tmp_path: Path, name: str) -> None:
    run, others = tmp_path / "run", tmp_path / "others"
    TensorBoard(others, first_step=0).write([validation(1), validation(9)])
    (events,) = others.iterdir()
    TensorBoard(run, first_step=0).write([step(1), step(2)])
    events.rename(run / name)
    content = (run / name).read_bytes()
    TensorBoard(run, first_step=2)
    assert (run / name).read_bytes() == content
    (run / name).unlink()
    assert points_in(run)[LOSS] == [(1, 1.5)]


@pytest.mark.parametrize("tail", [b"", b"\x05", b"\0" * 4096, b"\xff" * 100, bytes(range(200))])
def test_a_last_event_that_was_cut_off_or_lost_is_no_obstacle(tmp_path: Path, tail: bytes) -> None:
    """A killed process leaves a part of it, a host that lost its power zeros or anything."""
    TensorBoard(tmp_path, first_step=0).write([step(1), step(2)])
    (events,) = tmp_path.iterdir()
    whole = events.read_bytes()
    for kept_bytes in (len(whole), len(whole) - 1, len(whole) - 60):
        events.write_bytes(whole[:kept_bytes] + tail)
        TensorBoard(tmp_path, first_step=3).write([])
        assert events.read_bytes() == whole[:kept_bytes] + tail
        TensorBoard(tmp_path, first_step=2).write([step(2, 9.0)])
        assert points_in(tmp_path)[LOSS] == [(1, 1.5), (2, 9.0)]
        for path in tmp_path.iterdir():
            if path != events:
                path.unlink()


def test_what_version_0_1_0_hid_is_taken_out(tmp_path: Path) -> None:
    """It left all files as they were, and relied on the session log."""
    for first, last in [(0, 6), (4, 8), (6, 7)]:
        before = {path: path.read_bytes() for path in tmp_path.glob("*")}
        TensorBoard(tmp_path, first_step=first).write([step(number, float(last)) for number in range(first, last + 1)])
        for path, content in before.items():
            path.write_bytes(content)
    assert steps_of(points_in(tmp_path), LOSS) == [[*range(7), *range(4, 9), *range(6, 8)]]
    TensorBoard(tmp_path, first_step=7)
    assert points_in(tmp_path)[LOSS] == [*((n, 6.0) for n in range(4)), (4, 8.0), (5, 8.0), (6, 7.0)]


@pytest.mark.parametrize("clock", [1_800_000_000.4, 1_800_000_000.6, 1_799_999_000.0])
def test_files_are_read_in_the_order_in_which_they_were_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: float
) -> None:
    """Also within a second, and on a host whose clock is behind that of the one before."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.5)
    monkeypatch.setattr("socket.gethostname", lambda: "node-9")
    TensorBoard(tmp_path, first_step=0).write([step(1)])
    monkeypatch.setattr("time.time", lambda: clock)
    monkeypatch.setattr("socket.gethostname", lambda: "node-1.cluster.example")
    for number in range(2, 13):
        TensorBoard(tmp_path, first_step=number).write([step(number)])
    assert [number for number, _ in points_in(tmp_path)[LOSS]] == list(range(1, 13))
