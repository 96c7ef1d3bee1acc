"""What would make a run fit into the memory of a rank: the smallest change first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from megaslm.config.load import load
from megaslm.config.plan import plan_batches
from megaslm.config.schema import Recompute, RunConfig
from megaslm.model.shapes import shape_of
from megaslm.planning.foreseen import foresee
from megaslm.planning.plan import Plan, Request, make_plan, with_known_length, with_rows

_LEVELS: tuple[Recompute, ...] = get_args(Recompute)
_LAST_STAGE = 3


@dataclass(frozen=True)
class Change:
    """Another way to run the same configuration. Its results are the same."""

    micro_batch_rows: int
    recompute: Recompute
    stage: int

    def overrides(self, before: "Change") -> list[str]:
        """The settings that differ, as `--set` takes them."""
        settings = {
            "train.micro_batch_rows": (self.micro_batch_rows, before.micro_batch_rows),
            "model.recompute": (self.recompute, before.recompute),
            "zero.stage": (self.stage, before.stage),
        }
        return [f"{name}={value}" for name, (value, old) in settings.items() if value != old]


@dataclass(frozen=True)
class Fit:
    """The result of a search."""

    overrides: tuple[str, ...]
    """Settings that make the run fit; none where it fits as it is, or nothing tried does."""
    plan: Plan
    """The run with these settings or, where nothing tried fits, with those that take the least."""


def find_fit(path: Path, overrides: Sequence[str], request: Request) -> Fit:
    """The smallest change after which the run fits, planned anew. Takes a second for each level of recomputation.

    A change of one setting comes before changes of two, fewer rows before recomputation, and both before another stage.
    """
    config = load(RunConfig, path, overrides).value
    config = with_known_length(config, request.epoch_tokens)
    machine, shape = request.machine, shape_of(config.model, request.model)
    rows = plan_batches(config, machine.ranks).micro_batch_rows
    before = Change(rows, config.model.recompute, config.zero.stage)
    tried = {
        change: foresee(_changed(config, change), shape, machine).memory.peak_bytes
        for change in _in_order(before, config, machine.ranks)
    }
    fitting = (change for change, needed in tried.items() if needed <= machine.usable_bytes)
    best = next(fitting, min(tried, key=tried.__getitem__))
    found = best.overrides(before)
    return Fit(tuple(found), make_plan(path, [*overrides, *found], request))


def _in_order(before: Change, config: RunConfig, ranks: int) -> list[Change]:
    """All changes, the smallest first, and first of all none."""

    def size(change: Change) -> tuple[int, int, int, int]:
        return (
            len(change.overrides(before)),
            change.stage - before.stage,
            _LEVELS.index(change.recompute),
            -change.micro_batch_rows,
        )

    return sorted(_changes(before, config, ranks), key=size)


def _changes(before: Change, config: RunConfig, ranks: int) -> Iterator[Change]:
    rows_of_rank = plan_batches(config, ranks).rows_per_rank
    for stage in range(before.stage, _LAST_STAGE + 1):
        for level in _LEVELS[_LEVELS.index(before.recompute) :]:
            for rows in range(1, before.micro_batch_rows + 1):
                if rows_of_rank % rows == 0:
                    yield Change(rows, level, stage)


def _changed(config: RunConfig, change: Change) -> RunConfig:
    return with_rows(config, change.micro_batch_rows).model_copy(
        update={
            "model": config.model.model_copy(update={"recompute": change.recompute}),
            "zero": config.zero.model_copy(update={"stage": change.stage}),
        }
    )
