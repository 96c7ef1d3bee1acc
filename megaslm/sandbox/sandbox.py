"""Runs programs in parallel, each apart from this machine and from the others."""

import json
import math
import os
import select
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from megaslm.errors import SandboxError
from megaslm.sandbox import probe
from megaslm.sandbox.interpreter import Settings
from megaslm.sandbox.result import Ending, ProgramResult
from megaslm.sandbox.tiers import Tier, TierName, import_folders, tiers
from megaslm.sandbox.worker import ENVIRONMENT, Worker

VARIABLES = {*ENVIRONMENT, "PWD", "LC_CTYPE"}
"""Environment variables that a program may see: bubblewrap and Python can set the last two."""
ATTEMPTS = 2
"""How often a program is tried whose worker ends with it, which the system's lack of memory can cause, too."""


class Sandbox:
    """Processes that run programs written by a model; a context manager.

    Each program has `seconds` of wall time and `memory_gib` of address space, of which the interpreter takes about
    0.15. It can compute and print, use threads, and read Python's own files. It reaches no network, no other process
    and no file of the user's.
    """

    def __init__(
        self, *, workers: int, seconds: float = 10, memory_gib: float = 1, tier: TierName | Literal["auto"] = "auto"
    ) -> None:
        """`auto` takes bubblewrap, and Landlock where bubblewrap does not work."""
        for name, value in {"workers": workers, "seconds": seconds, "memory_gib": memory_gib}.items():
            if not 0 < value < math.inf:
                raise SandboxError(f"sandbox: {name} = {value}: must be a positive number")
        self._worker_count = workers
        self._seconds, self._memory_gib = seconds, memory_gib
        self._wanted = tier
        self._workers: list[Worker] = []
        self._resources = ExitStack()
        self._lock = threading.Lock()
        self._passed_over: list[str] = []

    def __enter__(self) -> Self:
        """Start the workers. A SandboxError tells why no tier works here."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and what runs in them."""
        self._resources.close()

    def describe(self) -> str:
        """One line for the user: how programs are kept apart, and why not better."""
        limits = f"{self._seconds:g} s and {self._memory_gib:g} GiB per program"
        count = len(self._workers)
        line = f"sandbox: {self.tier.says}; {limits}; {count} {'worker' if count == 1 else 'workers'}"
        return f"{line} ({'; '.join(self._passed_over)})" if self._passed_over else line

    def run(self, programs: Sequence[str]) -> list[ProgramResult]:
        """The results of programs, in their order. One thread at a time runs programs; another one waits.

        Raises a SandboxError if a worker cannot be started again.
        """
        with self._lock:
            if not self._workers:
                raise RuntimeError("the sandbox is closed: enter it, or make another one after an error")
            try:
                return self._run(programs)
            except BaseException:
                # Answers to these programs must not be taken for answers to others.
                self.close()
                raise

    def _start(self) -> None:
        for tier in tiers(self._wanted):
            if isinstance(tier, str):
                self._passed_over.append(tier)
                continue
            problem = self._try(tier)
            if problem is None:
                self._workers += [self._new_worker() for _ in range(self._worker_count - 1)]
                return
            self.close()
            self._passed_over.append(f"{tier.name} does not work here: {problem}")
        raise SandboxError(
            f"no sandbox for model-written programs: {'; '.join(self._passed_over)}. Run them where bubblewrap or "
            "Landlock works, or, on a machine that holds nothing of value, with the tier unsafe"
        )

    def _try(self, tier: Tier) -> str | None:
        """Start one worker and let a program try what it must not reach; why the tier is not good enough, if so."""
        self.tier = tier
        # A file written by an unsafe program is removed with its folder; others write none.
        folder = "/" if tier.is_confined else self._resources.enter_context(tempfile.TemporaryDirectory())
        self._folder = Path(folder)
        self._pidfd = os.pidfd_open(os.getpid())
        self._resources.callback(os.close, self._pidfd)
        self._resources.callback(self._end_workers)
        self._workers = [self._new_worker()]
        source = Path(probe.__file__).read_text(encoding="utf-8")
        with tempfile.NamedTemporaryFile() as outside:
            call = f"reached({outside.name!r}, {sorted(VARIABLES)!r})" if tier.is_confined else "[]"
            try:
                (result,) = self._run([f"{source}\nimport json\nprint(json.dumps({call}))\n"])
            except SandboxError as error:
                return str(error)
        if result.ending != Ending.DONE:
            return f"the self-test ended with {result.ending}: {result.error}"
        reached = json.loads(result.stdout)
        return f"in the self-test a program could {', '.join(reached)}" if reached else None

    def _new_worker(self) -> Worker:
        tier = self.tier
        settings = Settings(
            confined=tier.is_confined,
            readable=None if tier.readable is None else list(tier.readable),
            scratch=tier.scratch,
            seconds=self._seconds,
            memory_bytes=int(self._memory_gib * 2**30),
            host_pidfd=self._pidfd,
        )
        return Worker(tier.prefix, import_folders(), settings, self._folder)

    def _end_workers(self) -> None:
        while self._workers:
            self._workers.pop().end()

    def _run(self, programs: Sequence[str]) -> list[ProgramResult]:
        results: dict[int, ProgramResult] = {}
        waiting, losses = deque(range(len(programs))), [0] * len(programs)
        while len(results) < len(programs):
            for worker in self._workers:
                if waiting and worker.is_idle:
                    number = waiting.popleft()
                    worker.send(number, programs[number])
            for worker in self._answering():
                task = worker.task
                try:
                    result = worker.receive()
                except EOFError:
                    worker.restart()
                    result = None
                    if task is not None:
                        losses[task] += 1
                        if losses[task] < ATTEMPTS:
                            waiting.appendleft(task)
                        else:
                            result = ProgramResult(Ending.KILLED, "", "the process that watched it ended")
                if task is not None and result is not None:
                    results[task] = result
        return [results[number] for number in range(len(programs))]

    def _answering(self) -> list[Worker]:
        """The workers that have something to say, or have been silent for too long; waits for the first."""
        poller = select.poll()
        for worker in self._workers:
            poller.register(worker, select.POLLIN)
        deadline = min(worker.deadline for worker in self._workers)
        ready = {descriptor for descriptor, _ in poller.poll(max(0, (deadline - time.monotonic()) * 1000))}
        return [worker for worker in self._workers if worker.fileno() in ready or time.monotonic() > worker.deadline]
