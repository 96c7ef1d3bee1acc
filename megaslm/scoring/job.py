"""The `score` verb: the reference's loss of every target, computed once and stored beside the tokens."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from megaslm.config.share import Share
from megaslm.data.dataset.manifest import Manifest
from megaslm.data.storage.dataset_folder import open_dataset
from megaslm.data.task_notes import keeping_what_is_done
from megaslm.engine.distributed import join_world, on_first_rank
from megaslm.engine.stop_signal import StopSignal
from megaslm.engine.work_queue import WorkQueue
from megaslm.model.reference_model import ReferenceModel
from megaslm.observe.score_progress import ScoreProgress
from megaslm.scoring.derivation import Derivation
from megaslm.scoring.derivation_plan import SourcePart
from megaslm.scoring.part_scoring import PartScorer
from megaslm.scoring.provenance import describe_scored
from megaslm.scoring.reports import ScoredPart, known_parts, reports
from megaslm.scoring.summary import scored_by
from megaslm.scoring.task import ScoreTask

_WORKING = ".score"
# All ranks have said that they are done: what they noted is there, if not yet for this host.
_NOTED_ELSEWHERE_SECONDS = 120.0

T = TypeVar("T")

OnProgress = Callable[[ScoreProgress], None]
"""Called on the first rank."""


def score(task: ScoreTask, on_progress: OnProgress = lambda progress: None) -> Manifest:
    """Writes the output: the rows of the dataset, in order, with `ref_loss` and, if asked, `ref_entropy`.

    Called by every rank; each draws a part when it is done with the last. Parts that an earlier job has finished are
    not scored again, nor those of a finished output whose dataset has grown since.

    Raises:
        UserMistake: the reference does not fit the dataset, or the output holds something else or is being worked on.
        NonFiniteLoss: the reference gives a loss or an entropy that is NaN or infinite.
        Stopped: on SIGTERM.
        MegaSLMError: the system refuses, as when the disk is full.
    """
    job = _Job(task)
    manifest = job.finished()
    if manifest is None:
        with job.claimed(alone=True):
            job.score_parts(None, on_progress)
            manifest = job.assemble(patience_seconds=_NOTED_ELSEWHERE_SECONDS)
    return manifest


def score_share(task: ScoreTask, share: Share, on_progress: OnProgress = lambda progress: None) -> None:
    """Does a share of the parts and leaves the output unfinished; other shares may be done at the same time, elsewhere.

    Raises as `score` does.
    """
    job = _Job(task)
    if job.finished() is None:
        with job.claimed(alone=False):
            job.score_parts(share, on_progress)


def finish(task: ScoreTask) -> Manifest:
    """Makes a dataset of what all shares have done. Raises DataError where a part is not done, and says which."""
    job = _Job(task)
    manifest = job.finished()
    if manifest is None:
        with job.claimed(alone=True):
            manifest = job.assemble()
    return manifest


class _Job:
    """One job, as each of its ranks sees it. Every method is called by every rank."""

    def __init__(self, task: ScoreTask) -> None:
        self._free_since = time.monotonic()
        self._world = join_world()
        self._task = task
        place, cache = str(task.dataset), str(task.cache)
        self._described = self._once(
            lambda: describe_scored(task.reference, open_dataset(place, cache), task.settings, self._world.device)
        )
        self._derivation = Derivation(
            # On each host: what is needed of a remote dataset is fetched there.
            open_dataset(place, cache),
            self._described,
            task.output,
            working=task.working,
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
            yield

    def score_parts(self, share: Share | None, on_progress: OnProgress) -> None:
        """Draws parts, largest first, until there are none; comes back when all ranks are done."""
        waiting = self._once(lambda: self._waiting(share))
        queue = WorkQueue(self._world)
        try:
            with StopSignal() as stop, keeping_what_is_done(self._task.output):
                self._score_drawn(waiting, queue, stop, on_progress)
        except BaseException as error:
            queue.fail(error)
            raise

    def assemble(self, *, patience_seconds: float = 0.0) -> Manifest:
        """Joins what is done, and writes what is to be told of it."""

        def join() -> Manifest:
            outcomes = self._derivation.outcomes(patience_seconds=patience_seconds)
            return self._derivation.assemble(outcomes, reports(outcomes, self._described, self._task.reference))

        return self._once(join)

    def _once(self, action: Callable[[], T]) -> T:
        def keeping() -> T:
            with keeping_what_is_done(self._task.output):
                return action()

        return on_first_rank(keeping)

    def _waiting(self, share: Share | None) -> list[SourcePart]:
        parts = self._derivation.parts()
        mine = parts if share is None else share.of(parts)
        return [item for item in mine if not self._derivation.is_done(item)]

    def _score_drawn(
        self, waiting: Sequence[SourcePart], queue: WorkQueue, stop: StopSignal, on_progress: OnProgress
    ) -> None:
        began = time.monotonic()

        def tell(rows_done: int) -> None:
            stop.raise_if_told("the parts that are done are kept; start it again for the others")
            if self._world.is_first:
                rows = sum(item.part.rows for item in waiting)
                seconds = time.monotonic() - began
                on_progress(ScoreProgress(rows, rows_done, self._described.seq_len, self._world.size, seconds))

        def count(rows: int) -> None:
            tell(queue.add_progress(rows))

        scorer: PartScorer | None = None
        while (number := queue.draw()) < len(waiting):
            scorer = scorer or self._load()
            self._score_part(waiting[number], scorer, count)
        queue.wait_for_all(tell)

    def _load(self) -> PartScorer:
        record = self._described.reference
        assert record is not None, "describe_scored has set it"
        model = ReferenceModel.load(
            self._task.reference, record, eos_id=self._described.eos_id, device=self._world.device
        )
        return PartScorer(model, self._described, record.batch_rows)

    def _score_part(self, item: SourcePart, scorer: PartScorer, count: Callable[[int], None]) -> None:
        reader = self._derivation.source.reader(item.split, item.domain, item.part.name, checked=True)
        began = time.monotonic()

        def make(folder: Path) -> ScoredPart:
            part, statistics = scorer.score(reader, folder, str(item.path), count)
            seconds, start_seconds = time.monotonic() - began, began - self._free_since
            by = scored_by(self._world.rank, self._world.device, seconds, start_seconds)
            return ScoredPart(part=part, statistics=statistics, by=by)

        self._derivation.complete(item, make)
        self._free_since = time.monotonic()
