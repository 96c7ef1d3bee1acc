"""A run in numbers, from the files of its folder. Nothing of it is imported from the code that trains."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from megaslm.config.load import load
from megaslm.config.run_files import CHECKPOINTS, COMPLETE, CONFIG, METRICS
from megaslm.config.schema import RunConfig
from megaslm.observe.records import StepRecord, ValidationRecord, newest_records

_COST = "cost.json"


@dataclass(frozen=True)
class CheckpointFacts:
    """One complete checkpoint."""

    folder: str
    bytes: int


@dataclass(frozen=True)
class RunFacts:
    """A run at a glance."""

    run: str
    objective: str
    """What is trained on: all tokens (clm), a share of them by a criterion (slm), or the assistant's (sft)."""
    model: str
    """What the run started from."""
    datasets: tuple[str, ...]
    total_tokens: int
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


def run_facts(run: Path) -> RunFacts:
    """The facts of a run folder. Raises ConfigError where its configuration cannot be read."""
    config = load(RunConfig, run / CONFIG).value
    last_step, validations = newest_records(run / METRICS)
    cost = _cost(run / _COST)
    return RunFacts(
        run=str(run),
        objective=_objective(config),
        model=_model(config),
        datasets=_datasets(config),
        total_tokens=config.train.length_tokens,
        global_batch_tokens=config.train.global_batch_tokens,
        last_step=last_step,
        validations=tuple(validations),
        checkpoints=tuple(
            CheckpointFacts(str(folder), sum(path.stat().st_size for path in folder.iterdir()))
            for folder in sorted((run / CHECKPOINTS).glob("step-*"))
            if (folder / COMPLETE).is_file()
        ),
        seconds=None if cost is None else cost.seconds,
        ranks=None if cost is None else cost.ranks,
        gpu_hours=None if cost is None else cost.gpu_hours,
    )


def _objective(config: RunConfig) -> str:
    slm = config.slm
    if config.train.objective != "slm":
        return config.train.objective
    return f"slm · keep_ratio {slm.keep_ratio} by {slm.criterion} · scope {slm.scope} · mode {slm.mode}"


def _model(config: RunConfig) -> str:
    model = config.model
    if model.from_pretrained is not None:
        return f"from_pretrained {model.from_pretrained}"
    return f"from_run {model.from_run}" if model.from_run is not None else "from_scratch"


def _datasets(config: RunConfig) -> tuple[str, ...]:
    if config.data.train is not None:
        return (str(config.data.train),)
    return tuple(f"{name}: {stream.dataset}" for name, stream in config.data.streams.items())


class _Training(BaseModel):
    seconds: float
    ranks: int | None = None
    gpu_hours: float | None = None


class _Cost(BaseModel):
    training: _Training


def _cost(path: Path) -> _Training | None:
    """The cost of the training so far; None where no such file is."""
    try:
        return _Cost.model_validate_json(path.read_bytes()).training if path.is_file() else None
    except ValidationError:
        return None
