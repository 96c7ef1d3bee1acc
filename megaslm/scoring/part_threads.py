"""The parts of a derived dataset, made in threads until one fails."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Generic

import torch

from megaslm.dataset.rows import Rows
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import Stopped
from megaslm.jobs.ledger import Drawn, draw_all, new_run_id
from megaslm.jobs.progress import Tally, Watcher
from megaslm.jobs.run import JobRun
from megaslm.observe.display import counted
from megaslm.scoring.derivation import Derivation, Outcome
from megaslm.scoring.derivation_plan import SourcePart

_LOOK_SECONDS = 0.25

_TARGETS_AT_ONCE = 1 << 18

MakePart = Callable[[SourcePart, Iterator[tuple[int, Rows]], Path], Outcome]
"""Writes a part to a folder, of the rows of its source: the number in the part of the first of some rows, and these."""


class PartThreads(Generic[Outcome]):
    """The parts that are not made yet."""

    def __init__(
        self, derivation: Derivation[Outcome], make: MakePart[Outcome], watcher: Watcher, *, verb: str, seq_len: int
    ) -> None:
        """`seq_len`: targets per row."""
        self._derivation, self._make, self._watcher, self._seq_len = derivation, make, watcher, seq_len
        self._run = JobRun(
            derivation.ledger,
            new_run_id(),
            derivation.parts(),
            watcher,
            job=verb,
            unit="rows",
            size=lambda item: item.part.rows,
            is_done=derivation.is_done,
        )
        self._over = threading.Event()

    def run(self, threads: int | None) -> None:
        """Makes them in `threads` threads, by default one per core. Raises what the first failed thread has raised."""
        threads = threads or len(os.sched_getaffinity(0))
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
            make = partial(self._make, item, self._rows(item, tally, look))
            return self._derivation.draw(item, make, self._run.id, tally)

        draw_all(self._run.waiting, draw, look)

    def _rows(self, item: SourcePart, tally: Tally, look: Callable[[], None]) -> Iterator[tuple[int, Rows]]:
        reader = self._derivation.source.reader(item.split, item.domain, item.part.name, checked=True)
        at_once = max(1, _TARGETS_AT_ONCE // self._seq_len)
        for start in range(0, len(reader), at_once):
            look()
            stop = min(len(reader), start + at_once)
            yield start, reader.rows(start, stop)
            tally.report(rows=stop, targets=stop * self._seq_len)
