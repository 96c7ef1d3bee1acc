"""The event files of a run that is resumed, cut off, or not alone in its folder."""

from pathlib import Path

import pytest

from tests.boards import CUT_OFF, LOSS, PACE, SKIPPED, VALIDATION, board, readers, skipped, step, steps_of, validation
from tests.events import points_in


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
    board(tmp_path, first_step=0).write(CUT_OFF)
    before = readers(tmp_path)
    for read in before:
        assert steps_of(read(), LOSS, VALIDATION) == [[1, 2, 3, 5], [0, 2, 4]]
    resumed = board(tmp_path, first_step=first_step)
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
    board(tmp_path, first_step=0).write([validation(0), step(1), step(2), step(3)])
    before = readers(tmp_path)
    for attempt, (first, last) in enumerate([(3, 6), (5, 6), (5, 8), (2, 4), (2, 1), (4, 9)], start=2):
        resumed = board(tmp_path, first_step=first)
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
    board(others, first_step=0).write([validation(1), validation(9)])
    (events,) = others.glob("events*")
    board(run, first_step=0).write([step(1), step(2)])
    events.rename(run / name)
    content = (run / name).read_bytes()
    board(run, first_step=2)
    assert (run / name).read_bytes() == content
    (run / name).unlink()
    assert points_in(run)[LOSS] == [(1, 1.5)]


@pytest.mark.parametrize("tail", [b"", b"\x05", b"\0" * 4096, b"\xff" * 100, bytes(range(200))])
def test_a_last_event_that_was_cut_off_or_lost_is_no_obstacle(tmp_path: Path, tail: bytes) -> None:
    """A killed process leaves a part of it, a host that lost its power zeros or anything."""
    board(tmp_path, first_step=0).write([step(1), step(2)])
    (events,) = tmp_path.glob("events*")
    whole = events.read_bytes()
    for kept_bytes in (len(whole), len(whole) - 1, len(whole) - 60):
        events.write_bytes(whole[:kept_bytes] + tail)
        board(tmp_path, first_step=3).write([])
        assert events.read_bytes() == whole[:kept_bytes] + tail
        board(tmp_path, first_step=2).write([step(2, 9.0)])
        assert points_in(tmp_path)[LOSS] == [(1, 1.5), (2, 9.0)]
        for path in tmp_path.glob("events*"):
            if path != events:
                path.unlink()


def test_what_version_0_1_0_hid_is_taken_out(tmp_path: Path) -> None:
    """It left all files as they were, and relied on the session log."""
    for first, last in [(0, 6), (4, 8), (6, 7)]:
        before = {path: path.read_bytes() for path in tmp_path.glob("events*")}
        board(tmp_path, first_step=first).write([step(number, float(last)) for number in range(first, last + 1)])
        for path, content in before.items():
            path.write_bytes(content)
    assert steps_of(points_in(tmp_path), LOSS) == [[*range(7), *range(4, 9), *range(6, 8)]]
    board(tmp_path, first_step=7)
    assert points_in(tmp_path)[LOSS] == [*((n, 6.0) for n in range(4)), (4, 8.0), (5, 8.0), (6, 7.0)]


@pytest.mark.parametrize("clock", [1_800_000_000.4, 1_800_000_000.6, 1_799_999_000.0])
def test_files_are_read_in_the_order_in_which_they_were_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: float
) -> None:
    """Also within a second, and on a host whose clock is behind that of the one before."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.5)
    monkeypatch.setattr("socket.gethostname", lambda: "node-9")
    board(tmp_path, first_step=0).write([step(1)])
    monkeypatch.setattr("time.time", lambda: clock)
    monkeypatch.setattr("socket.gethostname", lambda: "node-1.cluster.example")
    for number in range(2, 13):
        board(tmp_path, first_step=number).write([step(number)])
    assert [number for number, _ in points_in(tmp_path)[LOSS]] == list(range(1, 13))
