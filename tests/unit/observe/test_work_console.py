import pytest

from megaslm.observe import work_console
from megaslm.observe.score_progress import ScoreProgress, score_work
from megaslm.observe.work_console import Work, WorkConsole


def work(done: int, *, before: int = 0, seconds: float = 10.0) -> Work:
    return Work(total=1000, done=done, before=before, seconds=seconds, numbers=f"{done} done")


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
def test_the_time_left_is_told_at_the_pace_of_this_run(given: Work, left: str) -> None:
    assert given.time_left() == left


def test_into_a_file_it_prints_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(work_console.time, "monotonic", lambda: now)
    with WorkConsole("score") as console:
        for second, done in enumerate([0, 100, 200, 200, 200, 1000, 1000]):
            now = 6.0 * second
            console.show(work(done))
    assert capsys.readouterr().out.splitlines() == [
        "score ·  20% · 200 done · 0:00:40 left",
        "score · 100% · 1000 done",
    ]


def test_scoring_is_told_in_rows() -> None:
    told = score_work(ScoreProgress(rows=4000, rows_done=1500, seq_len=2048, ranks=2, seconds=30.0))
    assert told.numbers == "1,500/4,000 rows · 2 ranks · 50.0 rows/s · 102,400 tokens/s"
    assert (told.total, told.done, told.before) == (4000, 1500, 0)
