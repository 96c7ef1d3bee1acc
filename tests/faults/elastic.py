"""Runs under torchrun, with its restarts, watched from outside."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from megaslm.config.schema import RunConfig
from tests.faults.host import MARK, environment_of, is_alive, processes_of
from tests.faults.injected import InjectedAt, injected_in
from tests.faults.runs import LONGER
from tests.injection.faults import injecting
from tests.toy import write_config

_LOOK_SECONDS = 0.02
_LONGEST_ATTEMPT_SECONDS = 180


@dataclass
class Rank:
    """One process of one attempt; times are in seconds of the system's clock."""

    process: int
    rank: int
    attempt: int
    began: float
    ended: float | None = None


@dataclass
class ElasticRun:
    """Two ranks of `megaslm train CONFIG --resume` under one torchrun, which starts both again when one has failed.

    The run may have another length than it had before.
    """

    config: RunConfig
    folder: Path
    """Where configuration and output go."""
    max_restarts: int = 0
    faults: str = ""
    ranks: list[Rank] = field(default_factory=list)
    growths: list[float] = field(default_factory=list)
    """When metrics.jsonl had grown."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_config(self._config_file, self.config)
        # All processes append, so that no line is written over another.
        with self._log.open("ab") as log:
            self._torchrun = subprocess.Popen(
                self._command(),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaves no process behind, whatever happened."""
        self._torchrun.kill()
        self._torchrun.wait()
        for process in processes_of(self.mark):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._over.set()
        self._watcher.join()

    @property
    def output(self) -> str:
        """All that torchrun and the ranks have said so far."""
        return self._log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether torchrun is still there."""
        return self._torchrun.poll() is None

    def wait(self, *, seconds: float) -> int:
        """Waits for torchrun to end, and gives its exit status."""
        try:
            status = self._torchrun.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None
        self._over.set()
        self._watcher.join()
        return status

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to torchrun, as a scheduler does."""
        self._torchrun.send_signal(number)

    def alive(self) -> list[Rank]:
        """The ranks that run now."""
        return [rank for rank in list(self.ranks) if rank.ended is None]

    def injected(self) -> list[InjectedAt]:
        """The faults that happened, first to last."""
        return injected_in(self.output)

    def detection_seconds(self, fault: InjectedAt) -> float:
        """From a fault to the end of the last process of its attempt."""
        ends = [rank.ended for rank in self.ranks if rank.attempt == fault.attempt]
        assert ends, self.output
        assert None not in ends, self.output
        return max(end for end in ends if end is not None) - fault.seconds

    def first_step_of(self, attempt: int) -> float:
        """When the first step of an attempt was reported, in seconds of the system's clock."""
        began = min(rank.began for rank in self.ranks if rank.attempt == attempt)
        return min(growth for growth in self.growths if growth > began)

    def steps_of(self, attempt: int) -> int:
        """How many steps an attempt has reported so far, or a few less: two at once count as one."""
        began = [rank.began for rank in list(self.ranks) if rank.attempt == attempt]
        return sum(growth > min(began) for growth in list(self.growths)) if began else 0

    def wait_for_steps(self, attempt: int, steps: int) -> None:
        """Until an attempt has reported so many steps."""
        give_up = time.monotonic() + _LONGEST_ATTEMPT_SECONDS
        while self.steps_of(attempt) < steps:
            assert time.monotonic() < give_up, self.output
            time.sleep(_LOOK_SECONDS)

    def _command(self) -> list[str]:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
        torchrun += ["--max-restarts", str(self.max_restarts), "--signals-to-handle", "SIGTERM,SIGUSR1"]
        train = ["megaslm", "train", str(self._config_file), "--resume", *LONGER]
        return [sys.executable, "-m", *torchrun, "-m", *train]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            MARK: self.mark,
            **injecting(self.faults),
        }

    @property
    def _config_file(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def _log(self) -> Path:
        return self.folder / "output.txt"

    def _watch(self) -> None:
        metrics, size = Path(self.config.run_dir) / "metrics.jsonl", 0
        while not self._over.is_set():
            self._look_at_ranks()
            before, size = size, metrics.stat().st_size if metrics.exists() else 0
            if size > before:
                self.growths.append(time.time())
            self._over.wait(_LOOK_SECONDS)
        self._look_at_ranks()

    def _look_at_ranks(self) -> None:
        now = time.time()
        for rank in self.alive():
            if not is_alive(rank.process):
                rank.ended = now
        known = {rank.process for rank in self.ranks}
        for process in self._children() - known:
            environment = environment_of(process)
            # Until the child has become the program, its environment is torchrun's.
            if "RANK" in environment:
                attempt = int(environment["TORCHELASTIC_RESTART_COUNT"])
                self.ranks.append(Rank(process, int(environment["RANK"]), attempt, now))

    def _children(self) -> set[int]:
        agent = self._torchrun.pid
        try:
            return {int(child) for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            return set()
