"""The verb to start, and the command that starts it: its words, environment and input."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn

from megaslm.config.cluster import SET_BY_LAUNCHERS
from megaslm.errors import ConfigError

Verb = Literal["train", "score", "prepare", "mask", "export"]
PROJECT = Path(__file__).resolve().parents[2]
CLUSTER_FILE = "MEGASLM_CLUSTER"
"""The variable that tells the launchers which file their settings come from."""


@dataclass(frozen=True)
class VerbCall:
    """A verb of `megaslm` with its arguments, word for word."""

    verb: Verb
    arguments: tuple[str, ...]
    is_share: bool = False
    """Whether it does one share of the work (--share)."""
    is_finish: bool = False
    """Whether it joins the shares into a dataset (--finish)."""
    is_smoke_test: bool = False
    """Whether it only tries the first steps of a training (--smoke). A failed one is not repeated."""

    @property
    def words(self) -> tuple[str, ...]:
        """The verb and its arguments."""
        return (self.verb, *self.arguments)

    @property
    def is_for_ranks(self) -> bool:
        """Whether several processes do it together. Other verbs run in one process."""
        return self.verb in ("train", "score") and not self.is_finish

    @property
    def can_be_shared(self) -> bool:
        """Whether several jobs may each do a part of it."""
        return self.verb in ("prepare", "score") and not self.is_finish

    def going_on(self) -> "VerbCall":
        """The same call for a launcher that may restart it: training then resumes from its newest checkpoint."""
        if self.verb != "train" or "--resume" in self.arguments:
            return self
        return replace(self, arguments=(*self.arguments, "--resume"))


@dataclass(frozen=True)
class Command:
    """A program with its arguments; no shell reads them."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables added to those of this process. This process's own launcher variables are removed."""
    standard_input: str | None = None
    """The program's input; None: this process's input."""
    is_submission: bool = False
    """Whether the program puts a job into a queue and ends."""

    def __str__(self) -> str:
        """The command in shell syntax or, for a program that reads manifests, the manifests."""
        if self.standard_input is not None:
            return self.standard_input.rstrip("\n")
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.words)])

    def environment_here(self, cluster_file: Path) -> dict[str, str]:
        """The program's environment. The launchers' messages name `cluster_file` as the place of their settings."""
        # Otherwise leftovers of these in the shell would take effect where the cluster's file says nothing.
        kept = {name: value for name, value in os.environ.items() if name not in SET_BY_LAUNCHERS}
        return {**kept, CLUSTER_FILE: str(cluster_file), **self.environment}

    def take_over(self, cluster_file: Path) -> NoReturn:
        """Replaces this process by the program, so that signals reach it and its exit status is the command's.

        Raises ConfigError where there is no such program.
        """
        program = self._program()
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(program, self.words, self.environment_here(cluster_file))

    def submit(self, cluster_file: Path, tell: Callable[[str], None]) -> int:
        """Runs the program and returns its exit status. `tell` gets each line that it prints, at once.

        Raises ConfigError where there is no such program.
        """
        program = self._program()
        with tempfile.TemporaryFile() as file:
            file.write((self.standard_input or "").encode())
            file.seek(0)
            environment = self.environment_here(cluster_file)
            with subprocess.Popen(
                self.words, executable=program, env=environment, stdin=file, stdout=subprocess.PIPE, text=True
            ) as running:
                for line in running.stdout or ():
                    tell(line.rstrip("\n"))
        return running.returncode

    def _program(self) -> str:
        program = shutil.which(self.words[0])
        if program is None:
            raise ConfigError(
                f"{self.words[0]}: no such program on this host; install it, or run this on a host that has it"
            )
        return program


def script(name: str) -> str:
    """The path of a file of `launcher/`. Raises ConfigError where MegaSLM was installed without it."""
    path = PROJECT / "launcher" / name
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; the launchers come with MegaSLM's source: install from there by `pip install -e`"
        )
    return str(path)


def one_process(work: VerbCall) -> tuple[str, ...]:
    """The words that start `work` in one process of this Python."""
    return (sys.executable, "-m", "megaslm", *work.words)
