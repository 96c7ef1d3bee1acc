"""The `score` verb: computes the reference's loss of every target once and stores it beside the tokens."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import torch

from megaslm.config.cluster import Share
from megaslm.config.section import home_expanded, without_credentials
from megaslm.dataset.manifest import MANIFEST, SCORES, TOKENIZER, Manifest, Reference
from megaslm.dataset.remote import DatasetFolder, open_dataset
from megaslm.engine.distributed import World, join_world, on_first_rank
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import DataError, MegaSLMError
from megaslm.files import locked
from megaslm.health.findings import Requirements
from megaslm.health.preflight import preflight
from megaslm.health.shared_folders import locks_hold, require_shared
from megaslm.jobs.ledger import keeping_what_is_done, new_run_id
from megaslm.jobs.progress import Unwatched, Watcher
from megaslm.jobs.ray_workers import RayCluster
from megaslm.model.aligned_reference import AlignedReference
from megaslm.model.attention import flash
from megaslm.model.decoder_layers import compile_line, is_compiled
from megaslm.model.finished import unfinished_reference
from megaslm.model.fit import bos_warning
from megaslm.model.reference_model import ReferenceModel
from megaslm.scoring.derivation import Derivation
from megaslm.scoring.derivation_plan import REF_LOSS, reference_of, with_reference
from megaslm.scoring.part_scoring import AlignedScorer, PartScorer, Scorer
from megaslm.scoring.provenance import describe_scored
from megaslm.scoring.reports import ScoredPart, known_parts, reports, with_cost
from megaslm.scoring.request import ScoreRequest
from megaslm.scoring.work import WHAT_IS_KEPT, ScoreLedger, ScoreProcess
from megaslm.storage.file_systems import is_remote

_WORKING = ".score"
_COMPILE = "--compile"
# All ranks are done: their notes exist, though this host may not see them yet.
_NOTED_ELSEWHERE_SECONDS = 120.0
# The indices of all parts are joined, and the last files may go to a remote output.
_MADE_ELSEWHERE_SECONDS = 1800.0
_LOOK_AGAIN_SECONDS = 1.0
_BRIEFLY = 10.0

_UNWATCHED = Unwatched()
T = TypeVar("T")


def requirements_of(task: ScoreRequest) -> Requirements:
    """What the ranks of a job must have in common, and what their hosts need room for."""
    fetches = is_remote(str(task.dataset))
    folders = {
        "--reference": task.reference,
        "dataset": task.dataset,
        "output": task.output,
        "--work": task.working,
        "--cache": task.cache,
    }
    files = {"config.json of --reference": task.reference / "config.json"}
    if not fetches:
        files[f"{MANIFEST} of the dataset"] = Path(task.dataset) / MANIFEST
    options = {"--as": task.column} | {
        f"--{name.replace('_', '-')}": value for name, value in asdict(task.settings).items()
    }
    return Requirements(
        # Credentials in a URL must not be printed. Opening such a URL is refused later.
        settings={name: without_credentials(str(value)) for name, value in {**folders, **options}.items()},
        files=files,
        cache=home_expanded(task.cache) if fetches else None,
    )


def score(task: ScoreRequest, watcher: Watcher = _UNWATCHED) -> Manifest:
    """Writes the output: the rows of the dataset, in order, with `ref_loss` and, if asked, `ref_entropy`.

    Called by every rank. A rank draws one range of rows after the other, including the ranges of ranks that died. Rows
    that an earlier job has scored, and the parts of a finished output whose dataset has grown, are not scored again.

    Raises:
        UserMistake: the reference does not fit the dataset, the output holds something else or another job works
            there, or the ranks have different settings.
        NonFiniteLoss: the reference gives a loss or an entropy that is NaN or infinite.
        Stopped: on SIGTERM.
        MegaSLMError: the system reports an error, such as a full disk.
    """
    with StopSignal() as stop:
        job = _ScoreJob(task, watcher)
        manifest = job.finished()
        if manifest is None:
            with job.claimed(alone=True):
                job.score_parts(None, stop)
                manifest = job.assembled()
        return manifest


def score_share(task: ScoreRequest, share: Share, watcher: Watcher = _UNWATCHED) -> None:
    """Does a share of the parts and leaves the output unfinished. Other machines may do other shares at the same time.

    Raises as `score` does.
    """
    with StopSignal() as stop:
        job = _ScoreJob(task, watcher)
        if job.finished() is None:
            with job.claimed(alone=False):
                job.score_parts(share, stop)


def score_on_ray(task: ScoreRequest, cluster: RayCluster, watcher: Watcher = _UNWATCHED) -> Manifest:
    """Does the work of `score` in processes of a Ray cluster: one per GPU or, without GPUs, one per processor.

    Raises as `score` does, and DataError where the nodes do not share the output, or its locks do not hold.
    """
    device = torch.device("cuda:0" if cluster.gpus else "cpu")
    with StopSignal() as stop, keeping_what_is_done(task.output):
        described = describe_scored(task, _open(task), device)
        _warn(task, described)
        derivation = _derive(task, described)
        found = derivation.finished()
        if found is not None:
            watcher.say(f"{task.output} was finished already, from these rows by this reference")
            return found
        with derivation.claimed(alone=True):
            run_id = new_run_id()
            work = ScoreLedger(derivation, described, task.column, run_id)
            tasks, asked = work.tasks(), cluster.gpus or cluster.cpus
            count = min(asked, len(tasks))
            run = work.run(tasks, watcher, asked)
            run.in_processes(
                count,
                partial(_work_on_ray, task, described, run_id, count, device),
                ray=cluster,
                gpus=1 if cluster.gpus else 0,
                look=lambda: stop.raise_if_told(WHAT_IS_KEPT),
            )
            if why_left := work.why_left():
                raise MegaSLMError(why_left)
            run.publish(all_done=True)
            watcher.say(f"joins the scored parts into {task.output}")
            return _assemble(task, described, derivation, patience_seconds=_NOTED_ELSEWHERE_SECONDS)


def _work_on_ray(
    task: ScoreRequest, described: Manifest, run_id: str, count: int, device: torch.device, number: int
) -> None:
    """The work of the process `number` of `count`."""
    # The job's first process chose the device: another kind would give other losses.
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"{socket.gethostname()}: Ray gives a GPU, but torch finds none; repair that node's torch")
    with StopSignal() as stop:
        work = ScoreLedger(_derive(task, described), described, task.column, run_id)
        world = World(number, count, device)
        ScoreProcess(work, world, lambda: _load(task, described, device), stop, None, locks_hold=True).run(None)


def finish(task: ScoreRequest, watcher: Watcher = _UNWATCHED) -> Manifest:
    """Joins the shares into a dataset. Raises DataError, naming the parts, where one is not done."""
    job = _ScoreJob(task, watcher)
    job.take_on()
    manifest = job.finished()
    if manifest is None:
        with job.claimed(alone=True):
            manifest = job.joined_shares()
    return manifest


class _ScoreJob:
    """One job, as each of its ranks sees it. Every method is called on all ranks.

    During the work no rank waits for another, which may have died. The ranks communicate only through the ledger.
    """

    def __init__(self, task: ScoreRequest, watcher: Watcher) -> None:
        self._world = join_world()
        self._task = task
        self._watcher = watcher
        is_compiled(task.settings.compile, self._world.device, name=_COMPILE)
        for line in preflight(self._world, requirements_of(task)):
            if self._world.is_first:
                print(line, flush=True)
        self._described = self._once(lambda: describe_scored(task, _open(task), self._world.device))
        if self._world.is_first:
            _warn(task, self._described)
        self._derivation = _derive(self._task, self._described)

    def take_on(self) -> None:
        """Takes the arithmetic of the scoring ranks, since this host may have no GPU. A requested precision stays."""
        earlier = self._once(self._derivation.earlier)
        before = None if earlier is None else reference_of(earlier, self._task.column)
        if before is not None:
            arithmetic = {"attention": before.attention}
            if self._task.settings.precision == "auto":
                arithmetic["precision"] = before.precision
            reference = _record(self._task, self._described).model_copy(update=arithmetic)
            self._described = with_reference(self._described, self._task.column, reference)
            self._derivation = _derive(self._task, self._described)

    def finished(self) -> Manifest | None:
        manifest = self._once(self._derivation.finished)
        if manifest is not None:
            self._watcher.say(f"{self._task.output} was finished already, from these rows by this reference")
        return manifest

    @contextmanager
    def claimed(self, *, alone: bool) -> Iterator[None]:
        with ExitStack() as held:
            self._once(lambda: held.enter_context(self._derivation.claimed(alone=alone)))
            folder = self._derivation.ledger.folder
            require_shared(folder, "output" if self._task.working is None else "--work", self._world)
            if not self._world.is_first:
                at_work = self._derivation.ledger.at_work
                busy = f"{self._task.output}: another job is starting to work here"
                held.enter_context(locked(at_work, shared=True, patience_seconds=_BRIEFLY, busy=busy))
            # All ranks meet here, so that none is late for the following.
            self._locks_hold = locks_hold(folder, self._world)
            if not self._locks_hold:
                self._watcher.say(
                    f"{folder}: this file system keeps no locks between hosts; each rank scores a fixed share, and no "
                    "rank takes over the share of a rank that dies"
                )
            yield

    def score_parts(self, share: Share | None, stop: StopSignal) -> None:
        """Draws ranges of rows, those of the largest part first, until all are scored by any rank."""
        run_id = on_first_rank(new_run_id)
        self._watcher.say(f"attention: {_record(self._task, self._described).attention}")
        compiling = compile_line(self._task.settings.compile, self._world.device, name=_COMPILE)
        if compiling is not None:
            self._watcher.say(compiling)
        try:
            with keeping_what_is_done(self._task.output), self._unless_finished():
                self._process(run_id, stop).run(share)
        except BaseException as error:
            self._derivation.ledger.fail(run_id, error)
            raise

    def assembled(self) -> Manifest:
        """The dataset, joined from the work of all ranks by the first rank to arrive or, without locks, by rank 0."""
        self._watcher.say(f"joins the scored parts into {self._task.output}")
        deadline = time.monotonic() + _MADE_ELSEWHERE_SECONDS
        manifest = self._derivation.finished()
        while manifest is None:
            if self._locks_hold or self._world.is_first:
                with (
                    keeping_what_is_done(self._task.output),
                    self._unless_finished(),
                    self._derivation.ledger.setting_up(),
                ):
                    manifest = self._derivation.finished() or self._join(patience_seconds=_NOTED_ELSEWHERE_SECONDS)
            elif time.monotonic() > deadline:
                raise MegaSLMError(
                    f"{self._task.output}: the first rank has not joined the scored parts; start it again"
                )
            else:
                time.sleep(_LOOK_AGAIN_SECONDS)
            manifest = manifest or self._derivation.finished()
        # Removes progress files that ranks wrote after the first removal.
        self._derivation.tidy_up()
        return manifest

    @contextmanager
    def _unless_finished(self) -> Iterator[None]:
        """Ignores a missing ledger if another rank has finished the dataset meanwhile and removed it."""
        try:
            yield
        except (FileNotFoundError, DataError):
            deadline = time.monotonic() + _NOTED_ELSEWHERE_SECONDS
            # Another host may see the manifest later.
            while self._derivation.finished() is None:
                if self._derivation.ledger.folder.is_dir() or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_AGAIN_SECONDS)

    def joined_shares(self) -> Manifest:
        """The dataset, joined from the shares by the first rank, for all ranks."""

        self._watcher.say(f"joins the shares into {self._task.output}")

        def join() -> Manifest:
            with StopSignal() as stop:
                self._process(new_run_id(), stop).join_parts()
            return self._join()

        return self._once(join)

    def _process(self, run_id: str, stop: StopSignal) -> ScoreProcess:
        return ScoreProcess(
            ScoreLedger(self._derivation, self._described, self._task.column, run_id),
            self._world,
            lambda: _load(self._task, self._described, self._world.device),
            stop,
            self._watcher if self._world.is_first else None,
            locks_hold=self._locks_hold,
        )

    def _join(self, *, patience_seconds: float = 0.0) -> Manifest:
        return _assemble(self._task, self._described, self._derivation, patience_seconds=patience_seconds)

    def _once(self, action: Callable[[], T]) -> T:
        def keeping() -> T:
            with keeping_what_is_done(self._task.output):
                return action()

        return on_first_rank(keeping)


def _open(task: ScoreRequest) -> DatasetFolder:
    """The dataset. The description of a remote one is fetched once per host."""
    return open_dataset(str(task.dataset), str(task.cache))


def _warn(task: ScoreRequest, described: Manifest) -> None:
    way_out = ", or score with --align, which puts the reference's own BOS before each document"
    for warning in (
        None
        if task.settings.align
        else bos_warning(task.reference, described, dataset=task.dataset, otherwise=way_out),
        # The losses of an unfinished run are what --from-run asks for.
        unfinished_reference(task.reference) if task.run is None else None,
    ):
        if warning is not None:
            print(f"warning: {warning}", flush=True)


def _derive(task: ScoreRequest, described: Manifest) -> Derivation[ScoredPart]:
    return Derivation(
        _open(task),
        described,
        task.output,
        working=task.working,
        working_name=_WORKING,
        outcome_type=ScoredPart,
        # Only scores.json, which counts the losses of ref_loss, tells of earlier parts.
        known_parts=known_parts if task.column == REF_LOSS else lambda finished, read: {},
    )


def _record(task: ScoreRequest, described: Manifest) -> Reference:
    return cast(Reference, reference_of(described, task.column))


def _load(task: ScoreRequest, described: Manifest, device: torch.device) -> Scorer:
    record = _record(task, described)
    compiled = is_compiled(task.settings.compile, device, name=_COMPILE)
    flash.activate(task.settings.flash_attention, device, name="--flash-attention")
    try:
        if record.aligned:
            aligned = AlignedReference.load(
                task.reference,
                described,
                record,
                tokenizer=_open(task).path / TOKENIZER,
                device=device,
                compiled=compiled,
            )
            return AlignedScorer(aligned, described.eos_id)
        model = ReferenceModel.load(
            task.reference,
            record,
            eos_id=described.eos_id,
            vocab_size=described.vocab_size,
            device=device,
            compiled=compiled,
        )
    except torch.OutOfMemoryError as error:
        raise MegaSLMError(f"{task.reference} does not fit into the memory of {device}: {error}") from error
    return PartScorer(model, described.eos_id, record.batch_rows)


def _assemble(
    task: ScoreRequest, described: Manifest, derivation: Derivation[ScoredPart], *, patience_seconds: float = 0.0
) -> Manifest:
    outcomes = derivation.outcomes(patience_seconds=patience_seconds)
    if task.column == REF_LOSS:
        beside = reports(outcomes, described, task.reference, derivation.beside(SCORES))
    else:
        beside = with_cost(derivation.beside_source(), outcomes, task.reference)
    return derivation.assemble(outcomes, beside)
