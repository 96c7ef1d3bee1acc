from datetime import UTC, datetime

import pytest

from megaslm.jobs.progress import JobProgress
from megaslm.observe import console
from megaslm.observe.console import JobConsole, JobState, state_of
from tests.messages import Says


def work(done: int, *, before: int = 0, seconds: float = 10.0) -> JobState:
    return JobState(total=1000, done=done, before=before, seconds=seconds, numbers=f"{done} done")


def progress(rows: int, *, before: int = 0, total: int = 1000, retried: int = 0, left: int = 0) -> JobProgress:
    return JobProgress(
        job="score", unit="rows", total=total, before=before, tasks=4, tasks_done=1, tasks_retried=retried,
        tasks_left=left, counts={"rows": rows}, processes=2, seconds=10.0, written=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (work(0), ""),
        (work(100), " · 0:01:30 left"),
        (work(500, before=400), " · 0:00:50 left"),
        (work(1, seconds=36.0), " · 9:59:24 left"),
        (work(1000), ""),
    ],
)
def test_the_time_left_is_told_at_the_pace_of_this_run(given: JobState, left: str) -> None:
    assert given.time_left() == left


def test_into_a_file_it_prints_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with JobConsole("score") as shown:
        for second, done in enumerate([0, 100, 200, 200, 200, 1000, 1000]):
            now = 6.0 * second
            shown.show(progress(done))
    assert capsys.readouterr().out.splitlines() == [
        "score ·  20% · task 1/4 · 200 rows · 20.0 rows/s · 2 processes · 0:00:40 left",
        "score · 100% · task 1/4 · 1,000 rows · 100.0 rows/s · 2 processes",
    ]


def test_what_was_begun_again_or_left_is_told(says: Says) -> None:
    told = state_of(progress(1500, before=500, total=4000, retried=2, left=1))
    says(told.numbers, "1/4", "1,500", "150.0 rows/s", "2", "1")
    assert (told.total, told.done, told.before) == (4000, 2000, 500)
