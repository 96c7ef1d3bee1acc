"""What `megaslm score` says of its progress."""

from dataclasses import dataclass

from megaslm.observe.work_console import Work


@dataclass(frozen=True)
class ScoreProgress:
    """How far a job has come, over all of its ranks."""

    rows: int
    """To be scored by this job; those that were scored before it do not count."""
    rows_done: int
    """Scored by this job."""
    seq_len: int
    """Targets per row."""
    ranks: int
    """Of this job."""
    seconds: float
    """Since its ranks began."""


def score_work(progress: ScoreProgress) -> Work:
    """The same, in rows."""
    per_second = progress.rows_done / max(1e-9, progress.seconds)
    ranks = "1 rank" if progress.ranks == 1 else f"{progress.ranks} ranks"
    numbers = (
        f"{progress.rows_done:,}/{progress.rows:,} rows · {ranks} · {per_second:,.1f} rows/s · "
        f"{per_second * progress.seq_len:,.0f} tokens/s"
    )
    return Work(total=progress.rows, done=progress.rows_done, before=0, seconds=progress.seconds, numbers=numbers)
