"""The `score` verb: the reference's loss of every target, computed once and stored beside the tokens."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar, cast

import torch
from pydantic import BaseModel, ConfigDict

from megaslm.config.share import Share
from megaslm.data.dataset.manifest import Manifest, Reference
from megaslm.data.dataset.row_reader import RowReader
from megaslm.data.dataset.score_summary import ScoredBy
from megaslm.data.preparing.packing import count_targets
from megaslm.data.storage.dataset_folder import DatasetFolder, open_dataset
from megaslm.engine.distributed import World, join_world, on_first_rank
from megaslm.engine.preflight.check import preflight
from megaslm.engine.preflight.shared_folders import locks_hold, require_shared
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import MegaSLMError, PeerFailed
from megaslm.jobs.ledger import MOST_DEATHS, Drawn, Ledger, draw_all, keeping_what_is_done, new_run_id
from megaslm.jobs.progress import JobProgress, Publisher, Tally
from megaslm.model.reference_model import ReferenceModel
from megaslm.scoring.demands import demands_of
from megaslm.scoring.derivation import Derivation
from megaslm.scoring.derivation_plan import SourcePart
from megaslm.scoring.part_scoring import PartScorer, ScoredRows, with_values, write_part, write_values
from megaslm.scoring.provenance import describe_scored
from megaslm.scoring.reports import ScoredPart, known_parts, reports
from megaslm.scoring.summary import joined, scored_by
from megaslm.scoring.task import ScoreTask

_WORKING = ".score"
_RANGES = "ranges"
# A range is a task: small enough that ranks share a small dataset evenly, and that little is lost with a rank.
_LEAST_TARGETS = 1 << 18
_MOST_RANGES = 32
# All ranks have said that they are done: what they noted is there, if not yet for this host.
_NOTED_ELSEWHERE_SECONDS = 120.0
_LOOK_AGAIN_SECONDS = 1.0
_WHAT_IS_KEPT = "what is scored is kept; start it again for the rest"

T = TypeVar("T")

OnProgress = Callable[[JobProgress], None]
"""Called on the first rank, about once a second."""


class RangeOutcome(BaseModel):
    """What is noted of a range of rows that is scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: ScoredBy
    """Who computed its losses."""


@dataclass(frozen=True)
class RowRange:
    """Rows of a part that one rank scores in one go."""

    item: SourcePart
    rows: range

    @property
    def name(self) -> str:
        """What notes of it are filed under."""
        tokens = self.item.part.tokens_sha256[:12]
        return f"{self.item.name}--{tokens}--{self.rows.start:08d}-{self.rows.stop:08d}"


def ranges_of(item: SourcePart, seq_len: int, batch_rows: int) -> list[RowRange]:
    """The ranges of a part. It depends on the part alone, so that any number of ranks may go on with another's work.

    Each begins at a multiple of `batch_rows`: batches hold the same rows as if the part were scored in one go.
    """
    most_rows = max(math.ceil(_LEAST_TARGETS / seq_len), math.ceil(item.part.rows / _MOST_RANGES))
    step = math.ceil(most_rows / batch_rows) * batch_rows
    return [RowRange(item, range(start, min(item.part.rows, start + step))) for start in range(0, item.part.rows, step)]


def score(task: ScoreTask, on_progress: OnProgress = lambda progress: None) -> Manifest:
    """Writes the output: the rows of the dataset, in order, with `ref_loss` and, if asked, `ref_entropy`.

    Called by every rank; each draws a range of rows when it is done with the last, also one whose rank has died. What
    an earlier job has scored is not scored again, nor are the parts of a finished output whose dataset has grown.

    Raises:
        UserMistake: the reference does not fit the dataset, the output holds something else or is being worked on, or
            the ranks do not fit together.
        NonFiniteLoss: the reference gives a loss or an entropy that is NaN or infinite.
        Stopped: on SIGTERM.
        MegaSLMError: the system refuses, as when the disk is full.
    """
    with StopSignal() as stop:
        job = _Job(task)
        manifest = job.finished()
        if manifest is None:
            with job.claimed(alone=True):
                job.score_parts(None, stop, on_progress)
                manifest = job.assembled()
        return manifest


def score_share(task: ScoreTask, share: Share, on_progress: OnProgress = lambda progress: None) -> None:
    """Does a share of the parts and leaves the output unfinished; other shares may be done at the same time, elsewhere.

    Raises as `score` does.
    """
    with StopSignal() as stop:
        job = _Job(task)
        if job.finished() is None:
            with job.claimed(alone=False):
                job.score_parts(share, stop, on_progress)


def finish(task: ScoreTask) -> Manifest:
    """Makes a dataset of what all shares have done. Raises DataError where a part is not done, and says which."""
    job = _Job(task)
    job.take_on()
    manifest = job.finished()
    if manifest is None:
        with job.claimed(alone=True):
            manifest = job.joined_shares()
    return manifest


class _Job:
    """One job, as each of its ranks sees it. Every method is called by every rank.

    Once the work has begun no rank waits for another, which may have died: they meet in the ledger alone.
    """

    def __init__(self, task: ScoreTask) -> None:
        self._world = join_world()
        self._task = task
        for line in preflight(self._world, demands_of(task)):
            if self._world.is_first:
                print(line, flush=True)
        self._described = self._once(
            lambda: describe_scored(task.reference, self._open(), task.settings, self._world.device)
        )
        self._derivation = self._derive()

    def take_on(self) -> None:
        """Takes the arithmetic from those who scored, where none is asked for: this host may have no GPU."""
        earlier = self._once(self._derivation.earlier)
        if self._task.settings.precision == "auto" and earlier is not None and earlier.reference is not None:
            precision = {"precision": earlier.reference.precision}
            reference = cast(Reference, self._described.reference).model_copy(update=precision)
            self._described = self._described.model_copy(update={"reference": reference})
            self._derivation = self._derive()

    def _open(self) -> DatasetFolder:
        """The dataset; what is needed of a remote one is fetched once on each host."""
        return open_dataset(str(self._task.dataset), str(self._task.cache))

    def _derive(self) -> Derivation[ScoredPart]:
        return Derivation(
            self._open(),
            self._described,
            self._task.output,
            working=self._task.working,
            working_name=_WORKING,
            outcome_type=ScoredPart,
            known_parts=known_parts,
        )

    def finished(self) -> Manifest | None:
        return self._once(self._derivation.finished)

    @contextmanager
    def claimed(self, *, alone: bool) -> Iterator[None]:
        with ExitStack() as held:
            self._once(lambda: held.enter_context(self._derivation.claimed(alone=alone)))
            folder = self._derivation.ledger.folder
            require_shared(folder, "output" if self._task.working is None else "--work", self._world)
            self._locks_hold = locks_hold(self._derivation.claim, self._world)
            if not self._locks_hold and self._world.is_first:
                print(
                    f"score · {folder}: this file system keeps no locks between hosts; each rank scores a fixed share, "
                    "and nobody takes over that of a rank that dies",
                    flush=True,
                )
            yield

    def score_parts(self, share: Share | None, stop: StopSignal, on_progress: OnProgress) -> None:
        """Draws ranges of rows, those of the largest part first, until all are scored, by whichever rank."""
        run_id = on_first_rank(new_run_id)
        try:
            with keeping_what_is_done(self._task.output):
                work = _Work(self._derivation, self._described, run_id)
                rank = _Rank(work, self._world, self._load, stop, on_progress, locks_hold=self._locks_hold)
                with self._unless_finished():
                    rank.run(share)
        except BaseException as error:
            if not isinstance(error, PeerFailed):
                self._derivation.ledger.fail(run_id, error)
            raise

    def assembled(self) -> Manifest:
        """The dataset, made of what all ranks have scored by the first that comes here."""
        manifest = None
        while manifest is None:
            with self._unless_finished(), self._derivation.ledger.setting_up():
                manifest = self._derivation.finished() or self._join(patience_seconds=_NOTED_ELSEWHERE_SECONDS)
            manifest = manifest or self._derivation.finished()
        # What ranks have written of their progress after the first of them removed it.
        self._derivation.tidy_up()
        return manifest

    @contextmanager
    def _unless_finished(self) -> Iterator[None]:
        """Another rank may have made the dataset meanwhile, and removed the ledger."""
        try:
            yield
        except FileNotFoundError:
            deadline = time.monotonic() + _NOTED_ELSEWHERE_SECONDS
            # Another host may hear of it later.
            while self._derivation.finished() is None:
                if self._derivation.ledger.folder.is_dir() or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_AGAIN_SECONDS)

    def joined_shares(self) -> Manifest:
        """The dataset, made of what shares have scored; on the first rank, for all."""

        def join() -> Manifest:
            work = _Work(self._derivation, self._described, new_run_id())
            with StopSignal() as stop:
                _Rank(work, self._world, self._load, stop, lambda progress: None, locks_hold=True).join_parts()
            return self._join()

        return self._once(join)

    def _join(self, *, patience_seconds: float = 0.0) -> Manifest:
        with keeping_what_is_done(self._task.output):
            outcomes = self._derivation.outcomes(patience_seconds=patience_seconds)
            return self._derivation.assemble(outcomes, reports(outcomes, self._described, self._task.reference))

    def _once(self, action: Callable[[], T]) -> T:
        def keeping() -> T:
            with keeping_what_is_done(self._task.output):
                return action()

        return on_first_rank(keeping)

    def _load(self) -> PartScorer:
        folder, device, record = self._task.reference, self._world.device, cast(Reference, self._described.reference)
        try:
            model = ReferenceModel.load(folder, record, eos_id=self._described.eos_id, device=device)
        except torch.OutOfMemoryError as error:
            raise MegaSLMError(f"{folder} does not fit into the memory of {device}: {error}") from error
        return PartScorer(model, self._described.eos_id, record.batch_rows)


class _Work:
    """The parts of a job, and the ranges of those that are cut."""

    def __init__(self, derivation: Derivation[ScoredPart], described: Manifest, run_id: str) -> None:
        self.derivation, self.described, self.run_id = derivation, described, run_id
        self.parts = derivation.parts()
        self.ledger = derivation.ledger
        self.batch_rows = cast(Reference, described.reference).batch_rows
        folder = derivation.ledger.folder / _RANGES
        folder.mkdir(exist_ok=True)
        self.range_ledger = Ledger(folder, RangeOutcome, place=str(derivation.working))

    def tasks(self) -> list[RowRange | SourcePart]:
        """The ranges of all parts; a part that is not cut is one task."""
        tasks: list[RowRange | SourcePart] = []
        for item in self.parts:
            tasks += self.ranges(item) or [item]
        return tasks

    def ranges(self, item: SourcePart) -> list[RowRange]:
        """Of a part; none where it is scored in one go."""
        ranges = ranges_of(item, self.described.seq_len, self.batch_rows)
        return ranges if len(ranges) > 1 else []

    def is_done(self, task: RowRange | SourcePart) -> bool:
        """Whether a task or the part of a range is done."""
        if isinstance(task, RowRange):
            return self.range_ledger.is_done(task.name) or self.ledger.is_done(task.item.name)
        return self.ledger.is_done(task.name)

    def values(self, task: RowRange) -> Path:
        """Where the values of a range lie until its part is joined."""
        return self.range_ledger.folder / f"{task.name}.npy"

    def left(self) -> list[str]:
        """What is not done, as messages name it."""
        return [
            f"{each.item.path} (rows {each.rows.start} to {each.rows.stop - 1})"
            if isinstance(each, RowRange)
            else str(each.path)
            for each in self.tasks()
            if not self.is_done(each)
        ]


class _Rank:
    """One rank at work."""

    def __init__(
        self,
        work: _Work,
        world: World,
        load: Callable[[], PartScorer],
        stop: StopSignal,
        on_progress: OnProgress,
        *,
        locks_hold: bool,
    ) -> None:
        self._work, self._world, self._load, self._stop, self._on_progress = work, world, load, stop, on_progress
        self._locks_hold = locks_hold
        # Parts with a range that was left.
        self._left: set[str] = set()
        self._scorer: PartScorer | None = None
        self._free_since = time.monotonic()
        self._tally = Tally(work.ledger.folder, work.run_id, world.rank)
        self._publisher: Publisher | None = None
        self._reader_of = lru_cache(maxsize=1)(self._open_reader)

    def run(self, share: Share | None) -> None:
        """Draws tasks until all of a share are done. Of all parts, where no share is asked for, parts are joined too.

        Where locks do not hold, each rank has a fixed share of these, and waits for the others.
        """
        tasks = self._work.tasks() if share is None else share.of(self._work.tasks())
        if self._world.is_first:
            self._publisher = self._publisher_of(tasks)
        self._look()
        if share is None:
            tasks = [*tasks, *(item for item in self._work.parts if self._work.ranges(item))]
        mine = tasks if self._locks_hold else Share(self._world.rank + 1, self._world.size).of(tasks)
        left = draw_all(mine, self._draw, self._look)
        if not self._locks_hold:
            draw_all(tasks, self._is_done, self._look)
        self._tally.end(len(left))
        self._publish(at_once=True)
        if left:
            raise MegaSLMError(
                f"{self._work.derivation.working}: ranks died {MOST_DEATHS} times over {'; '.join(self._work.left())}: "
                "out of memory, or killed from outside; all else is scored and kept: start it again for these"
            )

    def join_parts(self) -> None:
        """Joins the parts whose ranges are all done."""
        for item in self._work.parts:
            if self._work.ranges(item):
                self._draw_part(item)

    def _publisher_of(self, tasks: Sequence[RowRange | SourcePart]) -> Publisher:
        done = [task for task in tasks if self._work.is_done(task)]
        return Publisher(
            self._work.ledger.folder,
            self._work.run_id,
            job="score",
            unit="rows",
            total=sum(map(_rows, tasks)),
            before=sum(map(_rows, done)),
            tasks=len(tasks),
            tasks_before=len(done),
        )

    def _look(self) -> None:
        self._stop.raise_if_told(_WHAT_IS_KEPT)
        self._work.ledger.raise_if_failed(self._work.run_id)
        # Raises FileNotFoundError once another rank has made the dataset and removed the ledger.
        self._work.ledger.folder.stat()
        self._publish()

    def _publish(self, *, at_once: bool = False) -> None:
        if self._publisher is not None:
            progress = self._publisher.publish(at_once=at_once)
            if progress is not None:
                self._on_progress(progress)

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
            # Whoever is the last joins the part, and it is drawn again at the end where that one has died.
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
        item = task.item if isinstance(task, RowRange) else task
        return Drawn.DONE if self._work.ledger.is_done(item.name) else Drawn.BUSY

    def _score_range(self, task: RowRange) -> RangeOutcome:
        began = time.monotonic()
        rows = self._scored(task.item, task.rows)
        targets = 0

        def counted() -> Iterator[ScoredRows]:
            nonlocal targets
            for some in rows:
                targets += count_targets(some.tokens, self._work.described.eos_id)
                yield some

        write_values(self._work.values(task), counted())
        by = self._ended(began, targets)
        return RangeOutcome(by=by)

    def _make(self, item: SourcePart, ranges: Sequence[RowRange], folder: Path) -> ScoredPart:
        """A part as a whole: scored, or joined of its ranges."""
        began = time.monotonic()
        described = self._work.described
        if ranges:
            by = joined(
                outcome.by for each in ranges if (outcome := self._work.range_ledger.outcome(each.name)) is not None
            )
            paths = [self._work.values(each) for each in ranges]
            part, statistics = write_part(
                folder, described, with_values(self._reader_of(item), paths, self._work.batch_rows)
            )
        else:
            part, statistics = write_part(folder, described, self._scored(item, range(item.part.rows)))
            by = (self._ended(began, statistics.targets),)
        return ScoredPart(part=part, statistics=statistics, by=by)

    def _scored(self, item: SourcePart, rows: range) -> Iterator[ScoredRows]:
        seq_len, done = self._work.described.seq_len, 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            self._tally.report(rows=done, targets=done * seq_len)
            self._look()

        self._scorer = self._scorer or self._load()
        return self._scorer.scored(self._reader_of(item), rows, str(item.path), count)

    def _ended(self, began: float, targets: int) -> ScoredBy:
        seconds, start_seconds = time.monotonic() - began, began - self._free_since
        self._free_since = time.monotonic()
        return scored_by(self._world.rank, self._world.device, targets, seconds, start_seconds)

    def _open_reader(self, item: SourcePart) -> RowReader:
        return self._work.derivation.source.reader(item.split, item.domain, item.part.name, checked=True)


def _rows(task: RowRange | SourcePart) -> int:
    return len(task.rows) if isinstance(task, RowRange) else task.part.rows
