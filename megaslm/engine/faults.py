"""Faults that tests inject into real runs, by the environment variable MEGASLM_FAULTS. Without it nothing happens.

The variable holds one or more of `ACTION@rankR:stepN[:POINT][:attemptA]`, separated by semicolons. A fault happens
once, in rank R, when it reaches POINT (of `megaslm.engine.places`, or "write": the checkpoint's writer) at step N, in
the attempt A that torchrun counts.
"""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import NoReturn, Self

import torch
from torch import Tensor

from megaslm.errors import ConfigError

ENVIRONMENT = "MEGASLM_FAULTS"

POINTS = ("start", "load", "data", "step", "validate", "save", "write", "end")
SPOILING_POINTS = ("data", "step")
"""Where there are numbers that can be made NaN."""

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}
ACTIONS = (*_SIGNALS, "raise", "hang", "slow", "nan")
_STDERR = 2
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


def arm(text: str) -> None:
    """Lets the faults of `text` come, in place of those so far; an empty text stands for none.

    Raises:
        ConfigError: the text is malformed.
    """
    _coming[:] = [Fault.parse(part.strip()) for part in text.split(";")] if text.strip() else []


def inject(point: str, step: int) -> None:
    """Does what is to go wrong at this point and step.

    Raises:
        InjectedFault: where that is to be raised.
    """
    if _coming:
        for fault in [fault for fault in _coming if fault.action != "nan" and fault.is_due(point, step)]:
            _announce(fault)
            _act(fault)


def spoiled(point: str, step: int, value: Tensor) -> Tensor:
    """The value, or NaN in its place where that is to go wrong at this point and step."""
    if _coming:
        for fault in [fault for fault in _coming if fault.action == "nan" and fault.is_due(point, step)]:
            _announce(fault)
            return value * torch.nan
    return value


def _announce(fault: Fault) -> None:
    """Strikes the fault off the list and says when it happened, in seconds of the system's clock."""
    _coming.remove(fault)
    # Nothing may be left in a buffer, as the next thing may be the process's end.
    os.write(_STDERR, f"injected fault {fault} at {time.time():.3f}\n".encode())


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


arm(os.environ.get(ENVIRONMENT, ""))
