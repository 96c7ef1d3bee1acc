"""Run folders, read for a report: complete, still running, of an earlier build, or without a step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megaslm.config.load import load
from megaslm.config.plan import total_steps
from megaslm.config.run_files import CONFIG
from megaslm.config.schema import RunConfig
from megaslm.dataset.cost_file import RunCost, read_cost
from megaslm.dataset.kinds import Kind, contents, kind_of
from megaslm.dataset.manifest import COST
from megaslm.errors import ConfigError
from megaslm.files import looked_in
from megaslm.observe.display import counted
from megaslm.report.before import Before, before, forward_flops_in
from megaslm.report.metrics import RunMetrics, read_metrics
from megaslm.report.spent import Spent, spent


@dataclass(frozen=True)
class ReportedRun:
    """What the files of a run say."""

    name: str
    """The shortest end of its path that tells it from the other runs."""
    path: Path
    config: RunConfig
    metrics: RunMetrics
    cost: RunCost | None
    spent: Spent
    """After each of its steps."""
    before: Before
    notes: tuple[str, ...]
    """What is missing, a sentence each."""

    @property
    def model(self) -> Path:
        """The folder with its model's configuration and tokenizer."""
        return self.path / "model"

    @property
    def is_selective(self) -> bool:
        """Whether it trains on a share of the targets."""
        return self.config.train.objective == "slm"

    @property
    def total_steps(self) -> int:
        """The steps that it is to make."""
        return total_steps(self.config)

    @property
    def last_step(self) -> int:
        """The last step in its metrics; 0 where there is none."""
        return int(self.metrics.step[-1]) if len(self.metrics.step) else 0

    @property
    def is_complete(self) -> bool:
        """Whether it has made all of its steps."""
        return self.last_step >= self.total_steps

    def is_reference_of(self, other: "ReportedRun") -> bool:
        """Whether it trained the reference of another run, whose cost.json then has the cost of this one."""
        stage = other.before.reference_training
        if self.cost is None or stage.tokens is None or not other.before.corpus:
            return False
        own = self.cost.training
        return (own.seconds, own.tokens_seen, own.tokens_selected) == (
            stage.seconds,
            stage.tokens,
            stage.selected_tokens,
        )


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """The runs in these folders, each once.

    Raises ConfigError where a folder is not that of a run, its configuration cannot be read, or no run has measured
    anything yet.
    """
    folders = list({path.resolve(): path for path in paths}.values())
    for folder in folders:
        require_run(folder)
    names = short_names([folder.resolve() for folder in folders])
    try:
        runs = [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be read ({error.strerror}); allow it, or leave the run out"
        ) from error
    if not any(run.last_step or run.metrics.validations for run in runs):
        places = ", ".join(str(folder) for folder in folders)
        raise ConfigError(f"{places}: nothing is reported yet in metrics.jsonl; report when the first steps are made")
    return runs


def require_run(folder: Path) -> None:
    """Raises ConfigError where a folder is not that of a run."""
    kind = kind_of(folder)
    if kind is Kind.RUN:
        return
    if kind is Kind.SMOKE_TEST:
        raise ConfigError(f"{folder}: is the folder of a smoke test, which is no run; name the run's own folder")
    if kind is Kind.MISSING:
        where = looked_in(folder)
        raise ConfigError(f"{folder}: no such folder{where}; name the folder of a run (run_dir of its configuration)")
    if kind is Kind.DATASET:
        raise ConfigError(f"{folder}: is a dataset, not a run; `megaslm inspect` shows it")
    if kind is Kind.CHECKPOINT:
        raise ConfigError(f"{folder}: is a checkpoint; name the folder of its run, {folder.parent.parent}")
    if kind is Kind.OTHER and (inside := contents(folder)):
        raise ConfigError(f"{folder}: is not the folder of a run, but holds {inside}; name each run")
    raise ConfigError(
        f"{folder}: is not the folder of a run, which holds {CONFIG} once all checks of the run have passed; name the "
        "folder that run_dir of a configuration says"
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other path has."""

    def end(path: Path, parts: int) -> str:
        return "/".join(path.parts[-parts:])

    def shortest(path: Path) -> str:
        others = [other for other in paths if other != path]
        for parts in range(1, len(path.parts)):
            if all(end(other, parts) != end(path, parts) for other in others):
                return end(path, parts)
        return str(path)

    return [shortest(path) for path in paths]


def started_in(path: Path, run_dir: str) -> Path:
    """The folder in which a run was started, by its place and the relative `run_dir` that it was given; the present one
    where the place does not tell."""
    place, given = path.resolve().parts, Path(run_dir).parts
    is_told = not Path(run_dir).is_absolute() and place[-len(given) :] == given
    return Path(*place[: -len(given)]) if is_told else Path()


def _read_run(path: Path, name: str) -> ReportedRun:
    config = load(RunConfig, path / CONFIG).value
    metrics, cost = read_metrics(path), read_cost(path)
    forward = forward_flops_in(path / "model", config.data.seq_len)
    first = before(config, cost, started_in(path, config.run_dir))
    run = ReportedRun(name, path, config, metrics, cost, spent(metrics, cost, forward), first, ())
    return replace(run, notes=(*_notes(run), *first.notes))


def _notes(run: ReportedRun) -> list[str]:
    metrics, notes = run.metrics, []
    if run.last_step == 0:
        notes.append("no step is reported yet")
    elif not run.is_complete:
        notes.append(f"{run.last_step:,} of {counted(run.total_steps, 'step')} so far")
    if metrics.skipped_steps:
        last = metrics.skipped_steps[-1]
        notes.append(f"skipped steps: {len(metrics.skipped_steps):,}, most recently step {last:,}")
    if metrics.unreadable_lines:
        notes.append(f"metrics.jsonl: left out as unreadable: {counted(metrics.unreadable_lines, 'line')}")
    if run.last_step and "all_loss" not in metrics.keys:
        notes.append("metrics of an earlier build: without all_loss, the mean loss of all targets")
    if run.cost is None:
        pace = "follow from the reported targets per second" if run.spent.seconds is not None else "are not known"
        state = f"{COST} cannot be read" if (run.path / COST).is_file() else f"no {COST} yet"
        notes.append(f"{state}, so that its seconds {pace}")
    if run.spent.flops is not None and _hides_second_passes(run):
        notes.append(
            "metrics of an earlier build: whether it made second forward passes is not known; its FLOPs count none"
        )
    if run.spent.flops is None:
        notes.append("its FLOPs are not known: model/config.json does not tell the model's shape")
    return notes


def _hides_second_passes(run: ReportedRun) -> bool:
    """Whether it may have made second forward passes of which its metrics do not tell."""
    config, train = run.config, run.config.train
    # Fewer ranks have more micro-steps.
    ranks = 1 if run.cost is None or run.cost.training.ranks is None else run.cost.training.ranks
    has_micro_steps = train.global_batch_tokens > ranks * train.micro_batch_rows * config.data.seq_len
    may = run.is_selective and config.slm.needs_all_losses and has_micro_steps
    return may and bool(np.isnan(run.metrics.second_pass_ratio).any())
