"""What `megaslm prepare` says of its progress."""

from megaslm.data.preparing.prepare import PrepareProgress
from megaslm.observe.work_console import Work


def prepare_work(progress: PrepareProgress) -> Work:
    """How far a run has come, in bytes of input."""
    return Work(
        total=progress.input_bytes,
        done=progress.input_bytes_done,
        before=progress.input_bytes_before,
        seconds=progress.seconds,
        numbers=_numbers(progress),
    )


def _numbers(progress: PrepareProgress) -> str:
    seconds = max(1e-9, progress.seconds)
    return (
        f"task {progress.tasks_done}/{progress.tasks} · {progress.text_bytes / 1e6:,.1f} MB of text · "
        f"{progress.text_bytes / 1e6 / seconds:,.1f} MB/s · {progress.tokens:,} tokens · "
        f"{progress.tokens / seconds:,.0f} tokens/s"
    )
