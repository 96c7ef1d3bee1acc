"""A run in numbers, from the files of its folder. Nothing of it is imported from the code that trains."""

from dataclasses import dataclass
from pathlib import Path

from megaslm.config.load import load
from megaslm.config.plan import total_steps
from megaslm.config.run_files import CHECKPOINTS, COMPLETE, CONFIG, METRICS
from megaslm.config.schema import RunConfig
from megaslm.dataset.cost_file import read_cost
from megaslm.observe.records import StepRecord, ValidationRecord, newest_records
from megaslm.observe.run_description import datasets_in_words, model_in_words, objective_in_words


@dataclass(frozen=True)
class CheckpointFacts:
    """One complete checkpoint."""

    folder: str
    bytes: int

    @property
    def step(self) -> int:
        """The number of steps before it."""
        return int(self.folder.rpartition("-")[2])


@dataclass(frozen=True)
class RunFacts:
    """A run at a glance."""

    run: str
    objective: str
    """What is trained on: all tokens (clm), some of them by a criterion (slm), or the assistant's (sft)."""
    model: str
    """What the run started from."""
    datasets: tuple[str, ...]
    total_tokens: int
    total_steps: int
    global_batch_tokens: int
    last_step: StepRecord | None
    """None before the first report."""
    validations: tuple[ValidationRecord, ...]
    """The newest of each domain of each set."""
    checkpoints: tuple[CheckpointFacts, ...]
    """Oldest first."""
    seconds: float | None
    """Training time so far over all attempts; None before the run has written cost.json."""
    ranks: int | None
    gpu_hours: float | None

    @property
    def is_finished(self) -> bool:
        """Whether there is a checkpoint of the last step. After it, nothing is left to do."""
        return bool(self.checkpoints) and self.checkpoints[-1].step >= self.total_steps


def run_facts(run: Path) -> RunFacts:
    """The facts of a run folder. Raises ConfigError where its configuration cannot be read."""
    config = load(RunConfig, run / CONFIG).value
    last_step, validations = newest_records(run / METRICS)
    cost = read_cost(run)
    return RunFacts(
        run=str(run),
        objective=objective_in_words(config),
        model=model_in_words(config),
        datasets=datasets_in_words(config),
        total_tokens=config.train.length_tokens,
        total_steps=total_steps(config),
        global_batch_tokens=config.train.global_batch_tokens,
        last_step=last_step,
        validations=tuple(validations),
        checkpoints=tuple(
            CheckpointFacts(str(folder), sum(path.stat().st_size for path in folder.iterdir()))
            for folder in sorted((run / CHECKPOINTS).glob("step-*"))
            if (folder / COMPLETE).is_file()
        ),
        seconds=None if cost is None else cost.training.seconds,
        ranks=None if cost is None else cost.training.ranks,
        gpu_hours=None if cost is None else cost.training.gpu_hours,
    )
