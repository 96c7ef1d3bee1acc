"""The `score` verb: the reference's loss of every target, computed once and stored beside the tokens."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar, cast

import torch

from megaslm.config.share import Share
from megaslm.data.dataset.manifest import Manifest, Reference
from megaslm.data.storage.dataset_folder import DatasetFolder, open_dataset
from megaslm.engine.distributed import join_world, on_first_rank
from megaslm.engine.preflight.check import preflight
from megaslm.engine.preflight.shared_folders import require_shared
from megaslm.engine.stop_signal import StopSignal
from megaslm.engine.work_queue import WorkQueue
from megaslm.errors import MegaSLMError
from megaslm.jobs.ledger import PATIENCE_SECONDS, keeping_what_is_done
from megaslm.jobs.locks import Busy
from megaslm.model.reference_model import ReferenceModel
from megaslm.observe.score_progress import ScoreProgress
from megaslm.scoring.demands import demands_of
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
_WHAT_IS_KEPT = "the parts that are done are kept; start it again for the others"

T = TypeVar("T")

OnProgress = Callable[[ScoreProgress], None]
"""Called on the first rank."""


def score(task: ScoreTask, on_progress: OnProgress = lambda progress: None) -> Manifest:
    """Writes the output: the rows of the dataset, in order, with `ref_loss` and, if asked, `ref_entropy`.

    Called by every rank; each draws a part when it is done with the last. Parts that an earlier job has finished are
    not scored again, nor those of a finished output whose dataset has grown since.

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
                manifest = job.assemble(patience_seconds=_NOTED_ELSEWHERE_SECONDS)
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
            manifest = job.assemble()
    return manifest


class _Job:
    """One job, as each of its ranks sees it. Every method is called by every rank."""

    def __init__(self, task: ScoreTask) -> None:
        self._free_since = time.monotonic()
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
            require_shared(
                self._derivation.workplace, "output" if self._task.working is None else "--work", self._world
            )
            yield

    def score_parts(self, share: Share | None, stop: StopSignal, on_progress: OnProgress) -> None:
        """Draws parts, largest first, until there are none; comes back when all ranks are done."""
        waiting = self._once(lambda: self._waiting(share))
        queue = WorkQueue(self._world)
        try:
            with keeping_what_is_done(self._task.output):
                stop.raise_if_told(_WHAT_IS_KEPT)
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

        def show(rows_done: int) -> None:
            if self._world.is_first:
                rows = sum(item.part.rows for item in waiting)
                seconds = time.monotonic() - began
                on_progress(ScoreProgress(rows, rows_done, self._described.seq_len, self._world.size, seconds))

        def count(rows: int) -> None:
            show(queue.add_progress(rows))
            stop.raise_if_told(_WHAT_IS_KEPT)

        scorer: PartScorer | None = None
        busy: list[SourcePart] = []
        while (number := queue.draw()) < len(waiting):
            scorer = scorer or self._load()
            try:
                self._score_part(waiting[number], scorer, count, patience_seconds=0.0)
            except Busy:
                busy.append(waiting[number])
        for item in busy:
            # Another job, of another number of shares perhaps, is at it; or its host has died.
            self._score_part(item, scorer or self._load(), count, patience_seconds=PATIENCE_SECONDS)
        queue.wait_for_all(show)

    def _load(self) -> PartScorer:
        folder, device, record = self._task.reference, self._world.device, cast(Reference, self._described.reference)
        try:
            model = ReferenceModel.load(folder, record, eos_id=self._described.eos_id, device=device)
        except torch.OutOfMemoryError as error:
            raise MegaSLMError(f"{folder} does not fit into the memory of {device}: {error}") from error
        return PartScorer(model, self._described, record.batch_rows)

    def _score_part(
        self, item: SourcePart, scorer: PartScorer, count: Callable[[int], None], *, patience_seconds: float
    ) -> None:
        reader = self._derivation.source.reader(item.split, item.domain, item.part.name, checked=True)
        began = time.monotonic()

        def make(folder: Path) -> ScoredPart:
            part, statistics = scorer.score(reader, folder, str(item.path), count)
            seconds, start_seconds = time.monotonic() - began, began - self._free_since
            by = scored_by(self._world.rank, self._world.device, seconds, start_seconds)
            return ScoredPart(part=part, statistics=statistics, by=by)

        self._derivation.complete(item, make, patience_seconds=patience_seconds)
        self._free_since = time.monotonic()
