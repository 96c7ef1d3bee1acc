"""The saves of a run, each followed by cost.json: tokens, seconds and GPU-hours, references and scoring included."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megaslm.config.plan import BatchPlan
from megaslm.config.retention import retention_of
from megaslm.config.source import dump
from megaslm.dataset.fit import reads_scores
from megaslm.dataset.manifest import COST
from megaslm.engine.distributed import World
from megaslm.files import write_file
from megaslm.stream.shards import ShardChecks
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.saver import Saver
from megaslm.training.run import TrainingRun
from megaslm.training.training_data import DomainCounts, TrainingDataset

Costs = dict[str, dict[str, float]]
"""The cost of `scoring` and of `reference_training`, as scoring wrote it beside the dataset."""


@dataclass(frozen=True)
class Cost:
    """The cost of training alone; `gpu_hours` is 0 on CPUs."""

    steps: int
    total_steps: int
    """Optimiser steps of the whole run."""
    tokens_seen: int
    tokens_selected: int
    seconds: float
    ranks: int
    gpu_hours: float


def write_cost(
    path: Path,
    progress: Progress,
    plan: BatchPlan,
    world: World,
    *,
    domains: DomainCounts,
    checks: ShardChecks,
    scored: Sequence[TrainingDataset],
) -> None:
    """Writes cost.json. `domains` are the counts at `progress`.

    `checks` is the cost of comparing shards with their checksums on the first host since the last start, in threads
    beside the training. `scored` adds the cost of scoring these datasets and of training their references. `scoring`
    and `reference_training` are sums over the datasets; a reference that scored several counts once. `datasets` has the
    cost of each dataset.
    """
    gpu_seconds = progress.rank_seconds if world.device.type == "cuda" else 0.0
    cost = Cost(
        steps=progress.step,
        total_steps=plan.total_steps,
        tokens_seen=progress.step * plan.tokens_per_step,
        tokens_selected=progress.selected_tokens,
        seconds=progress.seconds,
        ranks=world.size,
        gpu_hours=gpu_seconds / 3600,
    )
    passes = domains.passes
    content: dict[str, object] = {
        "training": asdict(cost),
        "shard_checks": asdict(checks),
        "domains": {name: {"tokens_seen": tokens, "passes": passes[name]} for name, tokens in domains.tokens.items()},
    }
    if scored:
        content |= _before_training(scored)
    write_file(path, json.dumps(content, indent=1) + "\n")


def _before_training(scored: Sequence[TrainingDataset]) -> dict[str, object]:
    costs = {dataset.setting: _costs_of(dataset.source.path) for dataset in scored}
    trained = {
        dataset.manifest.reference.weights_sha256: costs[dataset.setting]["reference_training"]
        for dataset in scored
        if dataset.manifest.reference is not None and "reference_training" in costs[dataset.setting]
    }
    scoring = [cost["scoring"] for cost in costs.values() if "scoring" in cost]
    return {"scoring": _total(scoring), "reference_training": _total(trained.values()), "datasets": costs}


def _costs_of(dataset: Path) -> Costs:
    path = dataset / COST
    costs: Costs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return costs


def _total(costs: Iterable[dict[str, float]]) -> dict[str, float]:
    parts = list(costs)
    return {name: sum(part[name] for part in parts) for name in ("seconds", "gpu_hours")}


def make_saver(
    run: TrainingRun,
    corrupt: tuple[int, ...],
    say: Callable[[str], None],
    on_saved: Callable[[int], None],
    *,
    saved_step: int,
) -> Saver:
    """The saver of a run; called on all ranks.

    Args:
        run: the run.
        corrupt: steps whose checkpoints are known to be corrupt.
        say: prints a line, on the first rank.
        on_saved: called on all ranks with the step of each complete checkpoint.
        saved_step: the step that the run has resumed from; 0 where it begins.
    """
    run.stop.kept = _kept(run, saved_step)

    def saved(progress: Progress) -> None:
        run.stop.kept = _kept(run, progress.step)
        _write_cost(run, progress, say)
        on_saved(progress.step)

    return Saver(
        run.folder.checkpoints,
        run.engine.state(),
        dump(run.config),
        run.world,
        run.cpu_group,
        retention=retention_of(run.config),
        max_failed=run.config.checkpoint.max_failed_saves,
        corrupt=corrupt,
        say=lambda line: say(f"{run.folder.path.name} · {line}"),
        on_saved=saved,
        how_to_start_again=run.how_to_start_again,
    )


def _kept(run: TrainingRun, step: int) -> str:
    """What is kept of a run that ends at once, and how it continues; `step` is the newest one that is saved."""
    if run.is_smoke_test:
        return "a smoke test keeps nothing: start it again"
    if step == 0:
        return f"no step of {run.folder.path} is saved yet: start again with --resume"
    return f"step {step} of {run.folder.path} is saved: resume with --resume"


def _write_cost(run: TrainingRun, progress: Progress, say: Callable[[str], None]) -> None:
    if not run.world.is_first:
        return
    try:
        write_cost(
            run.folder.cost,
            progress,
            run.plan,
            run.world,
            # A save ends while later steps are trained; their rows are not this checkpoint's.
            domains=DomainCounts(run.data.mixture, run.plan.seq_len, progress.rows_read),
            checks=run.stream.checked(),
            scored=run.data.datasets if reads_scores(run.config) else (),
        )
    except OSError as error:
        say(f"warning: {run.folder.cost} cannot be written: {error}; the next save tries again")
