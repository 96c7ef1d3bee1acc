"""A command that is ready to be run: its words, what it adds to the environment, what it reads."""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from megaslm.config.cluster import SET_BY_LAUNCHERS
from megaslm.errors import ConfigError
from megaslm.launch.work import Work

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Command:
    """A program with its arguments; no shell reads them."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those that this process has; of those that launchers set it gets no others."""
    standard_input: str | None = None
    """What the program reads; null is what this process would read."""

    def __str__(self) -> str:
        """What a shell takes as it is; of a program that reads manifests, these."""
        if self.standard_input is not None:
            return self.standard_input.rstrip("\n")
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.words)])

    def take_over(self) -> NoReturn:
        """Becomes the program, so that signals reach it and its status is the command's.

        Raises:
            ConfigError: there is no such program.
        """
        program = shutil.which(self.words[0])
        if program is None:
            raise ConfigError(f"{self.words[0]}: no such program on this host; install it, or go to one that has it")
        if self.standard_input is not None:
            with tempfile.TemporaryFile() as file:
                file.write(self.standard_input.encode())
                file.seek(0)
                os.dup2(file.fileno(), sys.stdin.fileno())
        sys.stdout.flush()
        sys.stderr.flush()
        # What the shell has left of these would count where the cluster's file says nothing.
        kept = {name: value for name, value in os.environ.items() if name not in SET_BY_LAUNCHERS}
        os.execve(program, self.words, {**kept, **self.environment})


def script(name: str) -> str:
    """The path of a file of `launcher/`.

    Raises:
        ConfigError: MegaSLM was installed without it.
    """
    path = PROJECT / "launcher" / name
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; the launchers come with MegaSLM's source, installed from there by `pip install -e`"
        )
    return str(path)


def one_process(work: Work) -> tuple[str, ...]:
    """The words that start it in one process of this Python."""
    return (sys.executable, "-m", "megaslm", *work.words)
