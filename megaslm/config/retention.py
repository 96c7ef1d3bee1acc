"""Which checkpoints of a run are kept, and which of its settings for that contradict one another."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept."""

    keep_last: int
    keep_every_steps: int | None

    def superfluous(self, steps: Sequence[int]) -> list[int]:
        """The steps whose checkpoints may be removed. `steps` are in rising order."""
        older = steps[: -self.keep_last]
        return [step for step in older if self.keep_every_steps is None or step % self.keep_every_steps]


def retention_of(config: RunConfig) -> Retention:
    """The retention of a run.

    The interval of `keep_every_tokens` is the nearest multiple of the interval between checkpoints, in steps, so that
    rounding to whole steps never makes the two miss each other.
    """
    section, written = config.checkpoint, _steps_between(config)
    if section.keep_every_tokens is None or written is None:
        return Retention(section.keep_last, section.keep_every_steps)
    times = round(section.keep_every_tokens / (written * config.train.global_batch_tokens))
    return Retention(section.keep_last, written * max(1, times))


def most_kept(config: RunConfig, plan: BatchPlan) -> int:
    """The most checkpoints that lie on the disk at once, the one that is being written included."""
    written = plan.times_due(config.checkpoint.every_tokens)
    retention = retention_of(config)
    kept = 0 if retention.keep_every_steps is None else plan.total_steps // retention.keep_every_steps
    return min(written, retention.keep_last + kept + 1)


def retention_warnings(config: RunConfig, total_steps: int) -> Iterator[str]:
    """A line for each setting of `checkpoint` that has no effect, or another one than it seems to have."""
    section, written, kept = config.checkpoint, _steps_between(config), retention_of(config).keep_every_steps
    if written is not None and written > total_steps:
        yield (
            f"checkpoint.every_tokens = {section.every_tokens}: is longer than the run of {total_steps} steps, so "
            "its only checkpoint is written at the end and a fault costs the whole run; lower it"
        )
        return
    name = "keep_every_steps" if section.keep_every_tokens is None else "keep_every_tokens"
    setting = f"checkpoint.{name} = {getattr(section, name)}"
    if getattr(section, name) is None:
        return
    if written is None or kept is None:
        yield f"{setting}: keeps nothing, because checkpoint.every_tokens is null; set it too"
    elif (meeting := math.lcm(written, kept)) > total_steps:
        yield (
            f"{setting}: keeps nothing, because checkpoints are written every {written} steps and none of the run's "
            f"{total_steps} steps is a multiple of {meeting}; all but the last {section.keep_last} are deleted"
        )
    elif meeting != kept:
        yield (
            f"{setting}: keeps only every {meeting}th step, because checkpoints are written every {written} steps; "
            "set checkpoint.keep_every_tokens instead"
        )


def _steps_between(config: RunConfig) -> int | None:
    """Steps between two checkpoints; None if there is only the one at the end."""
    every = config.checkpoint.every_tokens
    return None if every is None else max(1, every // config.train.global_batch_tokens)
