"""The saves of a run: as it is configured, each followed by what the run has cost so far."""

from collections.abc import Callable

from megaslm.config.dump import dump
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.saver import Saver
from megaslm.training.checkpoints.store import Retention
from megaslm.training.cost import write_cost
from megaslm.training.domain_counts import DomainCounts
from megaslm.training.job import Job
from megaslm.training.selection_check import reads_reference


def make_saver(job: Job, counts: DomainCounts, damaged: tuple[int, ...], say: Callable[[str], None]) -> Saver:
    """What writes the checkpoints of a run; called on all ranks.

    Args:
        job: the run.
        counts: what it has read of each domain.
        damaged: steps whose checkpoints are known not to be whole.
        say: prints a line, on the first rank.
    """
    checkpoint = job.config.checkpoint
    return Saver(
        job.run.checkpoints,
        job.engine.state(),
        dump(job.config),
        job.world,
        job.agreement,
        retention=Retention(checkpoint.keep_last, checkpoint.keep_every_steps),
        max_failed=checkpoint.max_failed_saves,
        damaged=damaged,
        say=lambda line: say(f"{job.run.path.name} · {line}"),
        on_saved=lambda progress: _write_cost(job, counts, progress, say),
    )


def _write_cost(job: Job, counts: DomainCounts, progress: Progress, say: Callable[[str], None]) -> None:
    if not job.world.is_first:
        return
    try:
        write_cost(
            job.run.cost,
            progress,
            progress.step * job.plan.tokens_per_step,
            job.world,
            domains=counts,
            checks=job.stream.checked(),
            scored=job.data.datasets if reads_reference(job.config) else (),
        )
    except OSError as error:
        say(f"warning: {job.run.cost} cannot be written: {error}; it is tried again after the next save")
