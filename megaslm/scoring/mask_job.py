"""The `mask` verb: stores a scored dataset's static choice as one bit per target, in place of losses and entropies."""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import COST, Manifest, Mask, read_manifest
from megaslm.dataset.remote import open_dataset
from megaslm.dataset.rows import pack_mask
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import DataError, Stopped
from megaslm.jobs.ledger import Drawn, draw_all, keeping_what_is_done, new_run_id
from megaslm.jobs.progress import Tally, Unwatched, Watcher
from megaslm.jobs.run import JobRun
from megaslm.observe.display import counted
from megaslm.scoring.derivation import Derivation, PartOutcome
from megaslm.scoring.derivation_plan import SourcePart, source_parts
from megaslm.scoring.mask import describe_masked, selected_targets

_WORKING = ".mask"
_TARGETS_AT_ONCE = 1 << 18
_LOOK_SECONDS = 0.25
_UNWATCHED = Unwatched()


@dataclass(frozen=True)
class MaskRequest:
    """The dataset to mask, the rule and the output."""

    dataset: str | Path
    """A scored dataset: a folder or a URL."""
    output: str | Path
    """A folder or a URL."""
    rule: Mask
    """The selection rule."""
    workers: int | None = None
    """Threads; None: one per core."""
    working: Path | None = None
    """For an output at a URL: a local folder for parts before they are sent."""
    cache: Path = Path("~/.cache/megaslm")
    """For a dataset at a URL: the folder that keeps fetched files."""


def mask(task: MaskRequest, watcher: Watcher = _UNWATCHED) -> Manifest:
    """Writes the output: the rows of the dataset, in order, with `selected` in place of losses and entropies.

    Parts that an earlier job has finished, and those of a finished output whose dataset has grown, are not made again.

    Raises:
        DataError: the dataset is corrupt or lacks the column that the rule sorts by, or the output holds something
            else.
        Stopped: on SIGTERM.
        MegaSLMError: the system reports an error, such as a full disk.
    """
    source = open_dataset(str(task.dataset), str(task.cache))
    described = describe_masked(read_manifest(source.path), source, task.rule)
    check_layout(source.path, shards_are_here=source.url is None)
    derivation = Derivation(
        source,
        described,
        task.output,
        working=task.working,
        working_name=_WORKING,
        outcome_type=PartOutcome,
        known_parts=lambda finished, read: _known_parts(finished),
    )
    finished = derivation.finished()
    if finished is not None:
        watcher.say(f"{task.output} was finished already, from these rows by this rule")
        return finished
    with keeping_what_is_done(task.output), derivation.claimed(alone=True):
        _MaskJob(derivation, described, watcher).run(task.workers or len(os.sched_getaffinity(0)))
        watcher.say(f"joins the masked parts into {task.output}")
        cost = source.path / COST
        return derivation.assemble(
            derivation.outcomes(), {COST: cost.read_text(encoding="utf-8")} if cost.is_file() else {}
        )


def _known_parts(finished: Manifest) -> Mapping[str, PartOutcome]:
    return {item.name: PartOutcome(part=item.part) for item in source_parts(finished)}


class _MaskJob:
    def __init__(self, derivation: Derivation[PartOutcome], described: Manifest, watcher: Watcher) -> None:
        assert described.mask is not None, "describe_masked has set it"
        self._derivation = derivation
        self._rule = described.mask
        self._eos_id = described.eos_id
        self._format = RowFormat.of(described)
        self._watcher = watcher
        self._run = JobRun(
            derivation.ledger,
            new_run_id(),
            derivation.parts(),
            watcher,
            job="mask",
            unit="rows",
            size=lambda item: item.part.rows,
            is_done=derivation.is_done,
        )
        self._over = threading.Event()

    def run(self, threads: int) -> None:
        """Does them in `threads` threads, until one fails."""
        waiting = len(self._run.waiting)
        idle = "" if waiting >= threads else "; a part is one task, so the other threads have none"
        self._watcher.say(f"{counted(waiting, 'part')} for {counted(threads, 'thread')}{idle}")
        # Each of these threads would start as many torch threads, which would compete for the same cores.
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(threads)
        with StopSignal() as stop:
            try:
                running = {pool.submit(self._draw_all, number, stop) for number in range(threads)}
                while running:
                    ended, running = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
                    for thread in ended:
                        thread.result()
                    self._run.publish(all_done=not running)
            finally:
                self._over.set()
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(torch_threads)

    def _draw_all(self, thread: int, stop: StopSignal) -> None:
        tally = Tally(self._derivation.ledger.folder, self._run.id, thread)

        def look() -> None:
            stop.raise_if_told("the parts that are done are kept; start it again for the others")
            if self._over.is_set():
                raise Stopped("another thread has failed")

        def draw(item: SourcePart) -> Drawn:
            return self._derivation.draw(item, partial(self._make, item, tally, look), self._run.id, tally)

        draw_all(self._run.waiting, draw, look)

    def _make(self, item: SourcePart, tally: Tally, look: Callable[[], None], folder: Path) -> PartOutcome:
        reader = self._derivation.source.reader(item.split, item.domain, item.part.name, checked=True)
        at_once = max(1, _TARGETS_AT_ONCE // self._format.seq_len)
        with part_writer(folder, self._format) as writer:
            for start in range(0, len(reader), at_once):
                look()
                rows = reader.rows(start, min(len(reader), start + at_once))
                try:
                    selected = selected_targets(self._rule, rows, self._eos_id)
                except DataError as error:
                    raise DataError(f"{item.path}, of the rows from {start} on: {error}") from error
                tokens = cast(NDArray[np.unsignedinteger], rows["tokens"])
                target_mask = cast(NDArray[np.uint8] | None, rows.get("target_mask"))
                writer.write(tokens, int(rows["domain"][0]), selected=pack_mask(selected), target_mask=target_mask)
                done = start + len(tokens)
                tally.report(rows=done, targets=done * self._format.seq_len)
        return PartOutcome(part=writer.part)
