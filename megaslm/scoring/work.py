"""The work of scoring a dataset in the ledger, and a process that does it: first ranges of rows, then parts."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict

from megaslm.config.cluster import Share
from megaslm.dataset.manifest import Manifest, Reference
from megaslm.dataset.rows import RowReader
from megaslm.dataset.score_summary import ScoredBy
from megaslm.engine.distributed import World
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import MegaSLMError
from megaslm.jobs.ledger import MOST_DEATHS, Drawn, Ledger, draw_all
from megaslm.jobs.progress import Tally, Watcher
from megaslm.jobs.run import JobRun
from megaslm.observe.display import counted
from megaslm.scoring.derivation import Derivation
from megaslm.scoring.derivation_plan import DerivationPlan, SourcePart, reference_of
from megaslm.scoring.part_scoring import ScoredRows, Scorer, with_values, write_part, write_values
from megaslm.scoring.reports import ScoredPart, joined, scored_by
from megaslm.slm.valid_targets import valid_targets

_RANGES = "ranges"
# A range is a task. It is small, so that ranks share a small dataset evenly and little is lost when a rank dies.
_LEAST_TARGETS = 1 << 18
_MOST_RANGES = 32
# Ranks share the work evenly if no task is longer than this multiple of a rank's share.
_EVEN = 1.5

WHAT_IS_KEPT = "what is scored is kept; start it again for the rest"
"""After a job was told to stop."""


class RangeOutcome(BaseModel):
    """The note of a scored range of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: ScoredBy
    """The process that computed its losses."""


@dataclass(frozen=True)
class RowRange:
    """Rows of a part that one rank scores as one task."""

    item: SourcePart
    rows: range
    made_by: str
    """How it is scored, in words. Rows scored in another way are another task."""

    @property
    def name(self) -> str:
        """Its name in the ledger."""
        digest = hashlib.sha256(f"{''.join(self.item.part.hashes)}{self.made_by}".encode()).hexdigest()[:16]
        return f"{self.item.name}--{digest}--{self.rows.start:08d}-{self.rows.stop:08d}"


def ranges_of(item: SourcePart, seq_len: int, batch_rows: int, made_by: str) -> list[RowRange]:
    """The ranges of a part. They depend only on the part, so that a job with another number of ranks may resume.

    Each range begins at a multiple of `batch_rows`: batches hold the same rows as if the part were a single range.
    """
    most_rows = max(math.ceil(_LEAST_TARGETS / seq_len), math.ceil(item.part.rows / _MOST_RANGES))
    step = math.ceil(most_rows / batch_rows) * batch_rows
    starts = range(0, item.part.rows, step)
    return [RowRange(item, range(start, min(item.part.rows, start + step)), made_by) for start in starts]


class ScoreLedger:
    """The parts of a job, and the ranges of the parts that are divided."""

    def __init__(self, derivation: Derivation[ScoredPart], described: Manifest, column: str, run_id: str) -> None:
        """`column`: the one that the losses go to."""
        self.derivation, self.described, self.column, self.run_id = derivation, described, column, run_id
        self.parts = derivation.parts()
        self.ledger = derivation.ledger
        self.batch_rows = cast(Reference, reference_of(described, column)).batch_rows
        how = {"reference", "kind"} | ({"losses"} if described.losses else set())
        self._made_by = DerivationPlan.of(described).model_dump_json(include=how)
        folder = derivation.ledger.folder / _RANGES
        folder.mkdir(exist_ok=True)
        self.range_ledger = Ledger(folder, RangeOutcome, place=str(derivation.working))

    def tasks(self) -> list[RowRange | SourcePart]:
        """The ranges of all parts. A part that is not divided is one task."""
        tasks: list[RowRange | SourcePart] = []
        for item in self.parts:
            tasks += self.ranges(item) or [item]
        return tasks

    def ranges(self, item: SourcePart) -> list[RowRange]:
        """The ranges of a part; empty if it is a single task."""
        ranges = ranges_of(item, self.described.seq_len, self.batch_rows, self._made_by)
        return ranges if len(ranges) > 1 else []

    def is_done(self, task: RowRange | SourcePart) -> bool:
        """Whether a task or the part of a range is done."""
        if isinstance(task, RowRange):
            return self.range_ledger.is_done(task.name) or self.ledger.is_done(task.item.name)
        return self.ledger.is_done(task.name)

    def values(self, task: RowRange) -> Path:
        """The file of a range's values until its part is joined."""
        return self.range_ledger.folder / f"{task.name}.npy"

    def run(
        self, tasks: Sequence[RowRange | SourcePart], watcher: Watcher, ranks: int
    ) -> JobRun[RowRange | SourcePart]:
        """The run of these tasks, of which it tells the watcher how many ranks share them."""
        run = JobRun(
            self.ledger, self.run_id, tasks, watcher, job="score", unit="rows", size=_rows, is_done=self.is_done
        )
        watcher.say(who_works(list(map(_rows, run.waiting)), ranks))
        return run

    def why_left(self) -> str:
        """A message that names the abandoned tasks and what to do; "" if there are none."""
        self.range_ledger.look_again()
        left = [str(item.path) for item in self.parts if self.ledger.is_left(item.name, self.run_id)]
        left += [
            f"{each.item.path} (rows {each.rows.start} to {each.rows.stop - 1})"
            for each in self.tasks()
            if isinstance(each, RowRange) and self.range_ledger.is_left(each.name, self.run_id)
        ]
        if not left:
            return ""
        shown = "; ".join(left[:10]) + ("; …" if len(left) > 10 else "")
        return (
            f"{self.derivation.working}: ranks died {MOST_DEATHS} times over {shown}: out of memory, or killed from "
            "outside; all else is scored and kept: start it again for these"
        )


def who_works(rows: Sequence[int], ranks: int) -> str:
    """How many ranks share the tasks, of so many rows each, and why some ranks wait if the tasks are too few."""
    line = f"{counted(len(rows), 'task')} for {counted(ranks, 'rank')}"
    if not rows or max(rows) * ranks <= _EVEN * sum(rows):
        return line
    return (
        f"{line}; the largest has {max(rows) / sum(rows):.0%} of the rows, and the other ranks wait for it: a task is "
        f"never divided below {_LEAST_TARGETS:,} targets, so this dataset needs fewer ranks"
    )


class ScoreProcess:
    """One working process: a rank, or a process started by Ray."""

    def __init__(
        self,
        work: ScoreLedger,
        world: World,
        load: Callable[[], Scorer],
        stop: StopSignal,
        watcher: Watcher | None,
        *,
        locks_hold: bool,
    ) -> None:
        """`load` is called when there is a task. Only one process gets `watcher`, and reports for all."""
        self._work, self._world, self._load, self._stop, self._watcher = work, world, load, stop, watcher
        self._locks_hold = locks_hold
        # Parts with an abandoned range.
        self._left: set[str] = set()
        self._scorer: Scorer | None = None
        self._free_since = time.monotonic()
        self._read_before = 0
        self._tally = Tally(work.ledger.folder, work.run_id, world.rank)
        self._run: JobRun[RowRange | SourcePart] | None = None
        self._reader_of = lru_cache(maxsize=1)(self._open_reader)

    def run(self, share: Share | None) -> None:
        """Draws tasks until all of a share are done. Without a share, draws all tasks and joins the parts too.

        Without working locks, each rank has a fixed share of these, and waits for the others.
        """
        tasks = self._work.tasks() if share is None else share.of(self._work.tasks())
        if self._watcher is not None:
            self._run = self._work.run(tasks, self._watcher, self._world.size)
        self._look()
        if share is None:
            tasks = [*tasks, *(item for item in self._work.parts if self._work.ranges(item))]
        mine = tasks if self._locks_hold else Share(self._world.rank + 1, self._world.size).of(tasks)
        left = draw_all(mine, self._draw, self._look, processes=self._world.size)
        if not self._locks_hold:
            draw_all(tasks, self._is_done, self._look, processes=self._world.size)
        self._tally.end(len(left))
        if self._run is not None:
            self._run.publish(at_once=True, all_done=not left)
        if left:
            raise MegaSLMError(self._work.why_left())

    def join_parts(self) -> None:
        """Joins the parts whose ranges are all done."""
        for item in self._work.parts:
            if self._work.ranges(item):
                self._draw_part(item)

    def _look(self) -> None:
        self._stop.raise_if_told(WHAT_IS_KEPT)
        self._work.ledger.raise_if_failed(self._work.run_id)
        # Raises FileNotFoundError once another rank has made the dataset and removed the ledger.
        self._work.ledger.folder.stat()
        if self._run is not None:
            self._run.publish()

    def _draw(self, task: RowRange | SourcePart) -> Drawn:
        return self._draw_range(task) if isinstance(task, RowRange) else self._draw_part(task)

    def _draw_range(self, task: RowRange) -> Drawn:
        scored_here = False

        def do() -> RangeOutcome:
            nonlocal scored_here
            scored_here = True
            return self._score_range(task)

        if self._work.ledger.is_done(task.item.name):
            return Drawn.DONE
        drawn = self._work.range_ledger.draw(task.name, do, self._work.run_id, self._tally)
        if drawn is Drawn.LEFT:
            self._left.add(task.item.name)
        if scored_here and self._locks_hold:
            # The process that finishes last joins the part. If it dies, the part is drawn again at the end.
            self._draw_part(task.item)
        return drawn

    def _draw_part(self, item: SourcePart) -> Drawn:
        ranges = self._work.ranges(item)
        if self._work.ledger.is_done(item.name):
            return Drawn.DONE
        if not all(self._work.range_ledger.is_done(each.name) for each in reversed(ranges)):
            return Drawn.LEFT if item.name in self._left else Drawn.BUSY
        drawn = self._work.derivation.draw(
            item, partial(self._make, item, ranges), self._work.run_id, None if ranges else self._tally
        )
        if drawn is Drawn.DONE:
            for each in ranges:
                self._work.values(each).unlink(missing_ok=True)
        return drawn

    def _is_done(self, task: RowRange | SourcePart) -> Drawn:
        return Drawn.DONE if self._work.is_done(task) else Drawn.BUSY

    def _score_range(self, task: RowRange) -> RangeOutcome:
        rows = self._scored(task.item, task.rows)
        began = time.monotonic()
        targets = 0

        def counting() -> Iterator[ScoredRows]:
            nonlocal targets
            for some in rows:
                stored = some.stored
                targets += int(valid_targets(stored.tokens, self._work.described.eos_id, stored.target_mask).sum())
                yield some

        write_values(self._work.values(task), counting())
        by = self._ended(began, targets)
        return RangeOutcome(by=by)

    def _make(self, item: SourcePart, ranges: Sequence[RowRange], folder: Path) -> ScoredPart:
        """A whole part: scored, or joined from its ranges."""
        described, column = self._work.described, self._work.column
        if ranges:
            by = joined(
                outcome.by for each in ranges if (outcome := self._work.range_ledger.outcome(each.name)) is not None
            )
            paths = [self._work.values(each) for each in ranges]
            part, statistics = write_part(
                folder, described, column, with_values(self._reader_of(item), paths, self._work.batch_rows)
            )
        else:
            scored = self._scored(item, range(item.part.rows))
            began = time.monotonic()
            part, statistics = write_part(folder, described, column, scored)
            by = (self._ended(began, statistics.targets),)
        return ScoredPart(part=part, statistics=statistics, by=by)

    def _scored(self, item: SourcePart, rows: range) -> Iterator[ScoredRows]:
        seq_len, done = self._work.described.seq_len, 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            self._tally.report(rows=done, targets=done * seq_len)
            self._look()

        if self._scorer is None:
            if self._watcher is not None:
                self._watcher.say("loads the reference")
            self._scorer = self._load()
        return self._scorer.scored(self._reader_of(item), rows, str(item.path), count)

    def _ended(self, began: float, targets: int) -> ScoredBy:
        seconds, start_seconds = time.monotonic() - began, began - self._free_since
        self._free_since = time.monotonic()
        read = None if self._scorer is None else self._scorer.read_tokens
        read_now, self._read_before = None if read is None else read - self._read_before, read or 0
        return scored_by(self._world.rank, self._world.device, targets, seconds, start_seconds, read_now)

    def _open_reader(self, item: SourcePart) -> RowReader:
        return self._work.derivation.source.reader(item.split, item.domain, item.part.name, checked=True)


def _rows(task: RowRange | SourcePart) -> int:
    return len(task.rows) if isinstance(task, RowRange) else task.part.rows
