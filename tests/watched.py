"""A watcher that keeps what a job reports."""

from collections.abc import Callable
from dataclasses import dataclass, field

from megaslm.jobs.progress import JobProgress


@dataclass
class Watched:
    """Lines and progress of a job, in order; `meanwhile` is called at each progress."""

    meanwhile: Callable[[], None] = lambda: None
    lines: list[str] = field(default_factory=list)
    shown: list[JobProgress] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def show(self, progress: JobProgress) -> None:
        self.shown.append(progress)
        self.meanwhile()
