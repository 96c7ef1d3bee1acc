"""Faults that tests inject into real runs.

They are one or more of `ACTION@rankR:stepN[:POINT][:attemptA]`, separated by semicolons. A fault happens once, in rank
R, when it reaches POINT (of `megaslm.engine.heartbeat`, or "write": the checkpoint's writer) at step N, in the attempt
A that torchrun counts. Forked ranks call `arm`; commands that a test starts get the environment of `injecting`.
"""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self, cast

from megaslm.engine import heartbeat as positions
from megaslm.errors import ConfigError

if TYPE_CHECKING:
    # Python imports this file at its start, also where a command needs none of these.
    from torch import Tensor

    from megaslm.engine.zero import ZeroEngine
    from megaslm.slm.choice import Choice, HeadOutput
    from megaslm.slm.rule import Moment
    from megaslm.stream.loader import MicroBatch
    from megaslm.training.step import StepResult

ROOT = Path(__file__).parents[2]

ENVIRONMENT = "MEGASLM_FAULTS"
_SITE = Path(__file__).with_name("site")
"""The folder of sitecustomize.py, which Python runs at its start where PYTHONPATH names the folder."""

POINTS = ("start", "load", "data", "step", "validate", "save", "write", "end")
SPOILING_POINTS = ("data", "step")
"""Where there are numbers that can be made NaN."""

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}
ACTIONS = (*_SIGNALS, "raise", "hang", "slow", "nan")
_FORM = re.compile(r"(\w+)@rank(\d+):step(\d+)(?::([a-z]+))?(?::attempt(\d+))?")

# What stops and continues a slow rank. It is a program of its own and no fork, which would keep the rank's sockets and
# locks; it ends with the rank, whose child it is.
_STOPPED_HALF_THE_TIME = """
import os, signal, sys, time
rank = int(sys.argv[1])
while os.getppid() == rank:
    for number in signal.SIGSTOP, signal.SIGCONT:
        os.kill(rank, number)
        time.sleep(0.1)
"""


class InjectedFault(Exception):
    """What `raise` raises; like a programmer's mistake it is no MegaSLMError."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    action: str
    rank: int
    step: int
    point: str = "step"
    attempt: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `ACTION@rankR:stepN[:POINT][:attemptA]`.

        Raises:
            ConfigError: the text is nothing of the kind.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"{ENVIRONMENT}: {text!r} is no fault; expected ACTION@rankR:stepN[:POINT][:attemptA], several "
                "separated by ';', for instance kill@rank1:step7:save"
            )
        action, rank, step, point, attempt = found.groups()
        fault = cls(action, int(rank), int(step), point or "step", int(attempt or 0))
        points = SPOILING_POINTS if action == "nan" else POINTS
        for what, given, allowed in (("action", action, ACTIONS), (f"point of {action}", fault.point, points)):
            if given not in allowed:
                raise ConfigError(f"{ENVIRONMENT}: {text!r} has the {what} {given!r}; allowed are {', '.join(allowed)}")
        return fault

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.action}@rank{self.rank}:step{self.step}:{self.point}:attempt{self.attempt}"

    def is_due(self, point: str, step: int) -> bool:
        """Whether it happens in this process, at this point and step."""
        rank, attempt = _number("RANK"), _number("TORCHELASTIC_RESTART_COUNT")
        return (self.point, self.step, self.rank, self.attempt) == (point, step, rank, attempt)


_coming: list[Fault] = []
_watched: set[str] = set()


def injecting(text: str) -> dict[str, str]:
    """The environment variables by which these faults come in a command's processes."""
    return {ENVIRONMENT: text, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, _SITE)))}


def arm(text: str) -> None:
    """Lets the faults of `text` come in this process, in place of those so far; an empty text stands for none.

    Raises:
        ConfigError: the text is malformed.
    """
    _coming[:] = [Fault.parse(part.strip()) for part in text.split(";")] if text.strip() else []
    if _coming:
        _watch_positions()
        _watch_training()


def _watch_positions() -> None:
    if "positions" in _watched:
        return
    _watched.add("positions")
    heartbeat = positions.heartbeat

    def beat_and_fail(phase: positions.Phase, step: int) -> None:
        heartbeat(phase, step)
        _watch_training()
        inject(phase, step)

    positions.heartbeat = beat_and_fail
    for module in [module for name, module in sys.modules.items() if name.startswith("megaslm.")]:
        if getattr(module, "heartbeat", None) is heartbeat:
            module.heartbeat = beat_and_fail


def _watch_training() -> None:
    """Once it has been imported: a command does so after Python's start, but before the first heartbeat."""
    if "training" in _watched or "megaslm.training.step" not in sys.modules:
        return
    _watched.add("training")
    from megaslm.training.checkpoints.saver import PartWrite
    from megaslm.training.step import TrainStep

    write, train_step = PartWrite._write, TrainStep.__call__

    def write_and_fail(part: PartWrite) -> None:
        inject("write", part.progress.step)
        write(part)

    def train_on_spoiled(
        training: TrainStep, rows: "Sequence[MicroBatch]", moment: "Moment", learning_rate: float
    ) -> "StepResult":
        read = [
            replace(
                part,
                columns={
                    name: spoiled("data", moment.step, column) if name == "ref_loss" else column
                    for name, column in part.columns.items()
                },
            )
            for part in rows
        ]
        engine = cast("ZeroEngine", _Spoiling(training.engine, moment.step))
        return train_step(replace(training, engine=engine), read, moment, learning_rate)

    PartWrite._write = write_and_fail
    TrainStep.__call__ = train_on_spoiled


class _Spoiling:
    """An engine whose sum of losses may come to NaN."""

    def __init__(self, engine: "ZeroEngine", step: int) -> None:
        self._engine = engine
        self._step = step

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def forward(self, tokens: "Tensor", choice: "Choice", document_bounds: "Tensor | None" = None) -> "HeadOutput":
        output = self._engine.forward(tokens, choice, document_bounds)
        return output._replace(total=spoiled("step", self._step, output.total))


def inject(point: str, step: int) -> None:
    """Does what is to go wrong at this point and step.

    Raises:
        InjectedFault: where that is to be raised.
    """
    if _coming:
        for fault in [fault for fault in _coming if fault.action != "nan" and fault.is_due(point, step)]:
            _announce(fault)
            _act(fault)


def spoiled(point: str, step: int, value: "Tensor") -> "Tensor":
    """The value, or NaN in its place where that is to go wrong at this point and step."""
    if _coming:
        for fault in [fault for fault in _coming if fault.action == "nan" and fault.is_due(point, step)]:
            _announce(fault)
            return value * math.nan
    return value


def _announce(fault: Fault) -> None:
    """Strikes the fault off the list and says when it happened, in seconds of the system's clock."""
    _coming.remove(fault)
    # Nothing may be left in a buffer, as the next thing may be the process's end. In a command the descriptor 2 is the
    # log of its libraries.
    os.write(sys.stderr.fileno(), f"injected fault {fault} at {time.time():.3f}\n".encode())


def _act(fault: Fault) -> None:
    match fault.action:
        case "raise":
            raise InjectedFault(f"injected: {fault}")
        case "hang":
            _hang()
        case "slow":
            subprocess.Popen(
                [sys.executable, "-S", "-c", _STOPPED_HALF_THE_TIME, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        case name:
            os.kill(os.getpid(), _SIGNALS[name])


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _number(variable: str) -> int:
    return int(os.environ.get(variable, "0"))
