from datetime import UTC, datetime

import pytest

from megaslm.jobs.progress import JobProgress
from megaslm.observe import console
from megaslm.observe.console import JobConsole, JobState, state_of
from tests.messages import Says


def work(done: int, *, before: int = 0, seconds: float = 10.0) -> JobState:
    return JobState(
        total=1000, done=done, before=before, seconds=seconds, numbers=f"{done} done", is_complete=done == 1000
    )


def progress(
    rows: int, *, before: int = 0, total: int = 1000, tasks_done: int = 1, retried: int = 0, left: int = 0
) -> JobProgress:
    return JobProgress(
        job="score", unit="rows", total=total, before=before, tasks=4, tasks_done=tasks_done, tasks_retried=retried,
        tasks_left=left, counts={"rows": rows}, processes=2, seconds=10.0, written=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (work(0), ""),
        (work(100), " · 1 min 30 s left"),
        (work(500, before=400), " · 50.0 s left"),
        (work(1, seconds=36.0), " · 9 h 59 min left"),
        (work(1000), ""),
    ],
)
def test_the_time_left_is_told_at_the_pace_of_this_run(given: JobState, left: str) -> None:
    assert given.time_left() == left


def test_into_a_file_it_prints_a_line_every_few_seconds_and_one_once_all_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with JobConsole("score") as shown:
        for second, done in enumerate([0, 100, 200, 200, 200, 1000, 1000]):
            now = 3.0 * second
            shown.show(progress(done, tasks_done=1 if second < 6 else 4))
        shown.say("joins the parts")
        now = 90.0
    fifth, almost_all, said, whole = capsys.readouterr().out.splitlines()
    says(fifth, "20%", " 200 rows", "20 rows/s", "1 of 4 ", "2 processes", "40.0 s")
    # All rows are read, but the last task is not done.
    says(almost_all, "99%", "1,000 rows", "100 rows/s", "1 of 4 ", "2 processes")
    assert said == "score · joins the parts"
    says(whole, "100%", "1,000 rows", "100 rows/s", "4 of 4 ", "2 processes", "1 min 30 s")


def test_in_a_long_job_lines_come_a_minute_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with JobConsole("score") as shown:
        for second in range(36_000):
            now = float(second)
            shown.show(progress(second, total=100_000))
    lines = len(capsys.readouterr().out.splitlines())
    # They are 5 s apart for 500 s, then ever further apart, and 60 s from 6,000 s on.
    assert 600 < lines < 900


def test_an_error_and_a_quiet_console_leave_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    failing = JobConsole("score")
    failing.show(progress(1000, tasks_done=4))
    with pytest.raises(KeyError), failing:
        raise KeyError
    with JobConsole("score", quiet=True) as shown:
        shown.show(progress(1000, tasks_done=4))
        shown.say("unheard")
    assert capsys.readouterr().out == ""


def test_what_was_begun_again_or_left_is_told(says: Says) -> None:
    told = state_of(progress(1500, before=500, total=4000, retried=2, left=1))
    says(told.numbers, "1 of 4", "1,500", "150 rows/s", "2", "1")
    assert (told.total, told.done, told.before) == (4000, 2000, 500)


def test_what_is_slow_or_small_is_not_said_to_be_nothing(says: Says) -> None:
    counts = {"text_bytes": 5_000, "documents": 3, "tokens": 900, "rows": 1}
    told = state_of(progress(0).model_copy(update={"counts": counts, "seconds": 100.0}))
    says(told.numbers, "5.0 kB", "50 bytes/s", "0.030 documents/s", "9.0 tokens/s", "0.010 rows/s")
