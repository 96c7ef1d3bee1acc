"""Carries out stages side by side. A killed runner is started again with the same command and resumes."""

import ctypes
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from pydantic import BaseModel

from benchmarks.selection_suite.plan import Stage
from megaslm.errors import ConfigError
from megaslm.files import locked, read_back, write_file
from megaslm.observe.display import duration

ROOT = Path(__file__).parents[2]
_RECORD = "stages.json"
_LOOK_AGAIN_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Done(BaseModel):
    """What is recorded of a finished stage."""

    seconds: float
    sha256: str
    """Of its settings."""


class Record(BaseModel):
    """The content of stages.json: the finished stages by name."""

    stages: dict[str, Done] = {}


@dataclass(frozen=True)
class Outcome:
    """What became of the stages."""

    finished: list[Stage]
    """Of this attempt and of earlier ones."""
    failed: list[Stage]
    left: list[Stage]
    """Not begun: what they need has failed, the budget is spent, or the runner was told to stop."""
    stopped: bool


@dataclass
class _Running:
    stage: Stage
    process: subprocess.Popen[bytes]
    began: float
    asked_to_end: bool = False


@dataclass
class Runner:
    """Carries out stages in `folder`, which holds the record of what is done."""

    folder: Path
    cores: int
    budget_seconds: float | None = None
    """No stage begins that is expected to end later than this."""
    say: Callable[[str], None] = print
    result_of: Callable[[Stage], str] = lambda stage: ""
    """A word about what a finished stage found."""
    command: tuple[str, ...] = (sys.executable, "-m", "megaslm")
    """What the arguments of a stage are given to."""
    _record: Record = field(default_factory=Record, init=False)
    _durations: list[tuple[Stage, float]] = field(default_factory=list, init=False)
    _stopped: bool = field(default=False, init=False)

    def carry_out(self, stages: Sequence[Stage]) -> Outcome:
        """Carries out every stage that is not done yet, in this order, as soon as what it needs is done.

        A stage that fails is named; the stages that do not need it go on.

        Raises:
            ConfigError: a stage was done with other settings than those that it has now.
            Busy: another runner works in the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = f"{self.folder}: another run of the suite works here; wait for its end, or name another --folder"
        with locked(self.folder / ".lock", busy=busy), self._answering_signals():
            self._record = self._read()
            self._require_same_settings(stages)
            return self._carry_out(stages)

    def expected_seconds(self, stage: Stage) -> float | None:
        """What a stage will take, by the stages of its verb that are done; trainings by their tokens. None before
        one is done."""
        alike = [(other, seconds) for other, seconds in self._durations if other.verb == stage.verb]
        # Arms measure more than the models that they need.
        closest = [entry for entry in alike if (entry[0].run is None) == (stage.run is None)] or alike
        paces = [seconds / (other.tokens or 1) for other, seconds in closest]
        return statistics.mean(paces) * (stage.tokens or 1) if paces else None

    def _carry_out(self, stages: Sequence[Stage]) -> Outcome:
        began = time.monotonic()
        recorded = self._record.stages
        finished = [stage for stage in stages if stage.name in recorded]
        self._durations = [(stage, recorded[stage.name].seconds) for stage in finished]
        waiting = [stage for stage in stages if stage.name not in recorded]
        running: list[_Running] = []
        failed: list[Stage] = []
        while True:
            spent = time.monotonic() - began
            while len(running) < self.cores and (stage := self._next(waiting, spent)) is not None:
                waiting.remove(stage)
                running.append(self._started(stage))
            if not running:
                return Outcome(finished, failed, waiting, self._stopped)
            time.sleep(_LOOK_AGAIN_SECONDS)
            if self._stopped:
                self._ask_to_end(running)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                stage, status, seconds = each.stage, each.process.returncode, time.monotonic() - each.began
                if status == 0:
                    finished.append(stage)
                    self._keep(stage, seconds)
                    left = self._time_left([*waiting, *(other.stage for other in running)])
                    self.say(f"[{len(finished)}/{len(stages)}] {stage.name}: {self._told(stage, seconds)}{left}")
                elif self._stopped:
                    waiting.append(stage)
                else:
                    failed.append(stage)
                    self.say(f"failed: {stage.name} (status {status}); its last words are in {self._log(stage)}")

    def _next(self, waiting: Sequence[Stage], spent: float) -> Stage | None:
        """The first stage that can begin now. With a budget, the first that fits into what is left of it."""
        if self._stopped:
            return None
        for stage in waiting:
            expected = self.expected_seconds(stage) or 0.0
            fits = self.budget_seconds is None or spent + expected < self.budget_seconds
            if fits and all(need.name in self._record.stages for need in stage.needs):
                return stage
        return None

    def _ask_to_end(self, running: Sequence[_Running]) -> None:
        """Tells each command once to save and to end."""
        for each in running:
            if not each.asked_to_end:
                each.asked_to_end = True
                each.process.terminate()

    def _started(self, stage: Stage) -> _Running:
        if stage.settings is not None:
            stage.settings.parent.mkdir(parents=True, exist_ok=True)
            write_file(stage.settings, stage.content)
        log = self._log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        # An export is there only once it is complete, and cannot be made again.
        is_there = stage.verb == "export" and stage.output.exists()
        command = ("true",) if is_there else (*self.command, *stage.arguments)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
                # Ctrl-C of a terminal reaches the runner alone, which passes it on once.
                start_new_session=True,
                preexec_fn=_end_with_the_runner,
            )
        return _Running(stage, process, time.monotonic())

    def _told(self, stage: Stage, seconds: float) -> str:
        result = self.result_of(stage)
        return f"{duration(seconds)}{', ' if result else ''}{result}"

    def _time_left(self, stages: Sequence[Stage]) -> str:
        """How long these stages will take; the time is a lower bound while a verb has not been measured."""
        expected = [self.expected_seconds(stage) for stage in stages]
        if not expected:
            return ""
        known = [seconds for seconds in expected if seconds is not None]
        about = "about" if len(known) == len(expected) else "more than"
        return f"; {about} {duration(sum(known) / self.cores)} left"

    def _keep(self, stage: Stage, seconds: float) -> None:
        self._durations.append((stage, seconds))
        self._record.stages[stage.name] = Done(seconds=seconds, sha256=stage.sha256)
        write_file(self.folder / _RECORD, self._record.model_dump_json(indent=1) + "\n")

    def _read(self) -> Record:
        path = self.folder / _RECORD
        remedy = f"restore it, or remove {self.folder} to begin anew"
        return read_back(Record, path.read_bytes(), str(path), remedy) if path.is_file() else Record()

    def _require_same_settings(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            done = self._record.stages.get(stage.name)
            if done is not None and done.sha256 != stage.sha256:
                raise ConfigError(
                    f"{stage.name}: its settings have changed since it was done; undo the change, or name another "
                    f"--folder than {self.folder}"
                )

    def _log(self, stage: Stage) -> Path:
        return self.folder / "logs" / f"{stage.name.replace('/', '-')}.log"

    @contextmanager
    def _answering_signals(self) -> Iterator[None]:
        """A signal lets no further stage begin, and asks those that run to save and end."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopped = True

        # What nohup ignores stays ignored.
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, stop) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_with_the_runner() -> None:
    """A killed runner leaves no command behind that would write where its next attempt does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
