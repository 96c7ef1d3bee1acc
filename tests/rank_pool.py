"""Forked ranks that stay: they join one world once, and do one small job after another."""

import faulthandler
import gc
import os
import pickle
import random
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from megaslm.engine.distributed import World, join_world
from tests.forks import fork_ranks, statuses_of
from tests.injection.faults import arm

P = ParamSpec("P")
T = TypeVar("T")
Job = Callable[Concatenate[World, P], T]

_LONGEST_JOB_SECONDS = 100.0
"""Less than a test has."""
_LONGEST_START_SECONDS = 60.0
_OTHERS_SECONDS = 0.5
"""What the others have to answer after one has failed; they may wait for it in a collective."""
_SEAT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankFailed(AssertionError):
    """A rank has raised, died or not come back; the message has what is known of each."""


class RankPool:
    """Ranks of one world that are made at the first job, and made anew after a job that failed.

    A job is a function of a module, by its name, and what it gives is pickled. Between jobs a rank's environment,
    working folder, seeds, faults and DeepSpeed's hold on transformers are set back, and engines that nobody holds are
    gone. The process group, modules and what is kept in their globals are shared: a job takes back what it patches.
    What a job prints is not the test's; a test of messages, signals or exit statuses forks ranks of its own.
    """

    def __init__(self, world_size: int, *, longest_job_seconds: float = _LONGEST_JOB_SECONDS) -> None:
        self.world_size = world_size
        self._longest_job_seconds = longest_job_seconds
        # Whichever test comes first, what it changes is its own.
        self._environment, self._folder = dict(os.environ), Path.cwd()
        self._processes: list[int] = []
        self._pipes: list[Connection] = []
        self._stacks: IO[bytes] | None = None

    def run(self, job: Job[P, T], *arguments: P.args, **keywords: P.kwargs) -> list[T]:
        """What `job(world, …)` gives on each rank.

        Raises:
            RankFailed: it did not end well on all of them.
        """
        if not self._processes:
            self._start()
        try:
            for pipe in self._pipes:
                _send(pipe, (job, arguments, keywords))
            answers = self._answers(self._longest_job_seconds)
        except BaseException:
            # Such as the limit of the test: what the ranks still answer is not for the next one.
            self._end()
            raise
        if len(answers) == self.world_size and all(answer[0] for answer in answers.values()):
            return [answers[rank][1] for rank in range(self.world_size)]
        failures = [self._failure(rank, answers) for rank in range(self.world_size)]
        stacks = self._end()
        raise RankFailed("\n".join([*filter(None, failures), stacks]))

    def close(self) -> None:
        """Ends the ranks."""
        if self._processes:
            self._end()

    def _start(self) -> None:
        pairs = [Pipe() for _ in range(self.world_size)]
        stacks = TemporaryFile()  # noqa: SIM115  # Closed with the ranks.

        def serve() -> None:
            rank = int(os.environ["RANK"])
            # Only so is the end of the tests, or of a rank, seen at the other end.
            for number, (ours, theirs) in enumerate(pairs):
                ours.close()
                if number != rank:
                    theirs.close()
            seat = {name: os.environ[name] for name in _SEAT}
            _serve(pairs[rank][1], {**self._environment, **seat}, self._folder, stacks, self._longest_job_seconds)

        self._processes = fork_ranks(self.world_size, serve)
        self._pipes = [ours for ours, _ in pairs]
        self._stacks = stacks
        for _, theirs in pairs:
            theirs.close()
        assert len(self._answers(_LONGEST_START_SECONDS)) == self.world_size, "the ranks have not joined one world"

    def _answers(self, limit_seconds: float) -> dict[int, tuple[bool, T]]:
        """By rank; of those that have answered before it was too late."""
        answers: dict[int, tuple[bool, T]] = {}
        # A rank writes its stacks at its limit, and then has a moment to be heard.
        give_up = time.monotonic() + limit_seconds + _OTHERS_SECONDS
        pending = dict(zip(self._pipes, range(self.world_size), strict=True))
        while pending and (seconds := give_up - time.monotonic()) > 0:
            for pipe in wait(list(pending), seconds):
                assert isinstance(pipe, Connection)
                rank = pending.pop(pipe)
                with suppress(EOFError, ConnectionResetError):
                    answers[rank] = pickle.loads(pipe.recv_bytes())
                if not answers.get(rank, (False,))[0]:
                    give_up = min(give_up, time.monotonic() + _OTHERS_SECONDS)
        return answers

    def _failure(self, rank: int, answers: dict[int, tuple[bool, T]]) -> str | None:
        if rank in answers:
            has_ended_well, found = answers[rank]
            return None if has_ended_well else f"rank {rank}: {found}"
        # A process that dies closes its pipes first, and can be waited for a moment after.
        give_up = time.monotonic() + _OTHERS_SECONDS
        while not (ended := os.waitpid(self._processes[rank], os.WNOHANG))[0]:
            if time.monotonic() > give_up:
                return f"rank {rank} has not come back from its job"
            time.sleep(0.01)
        self._processes[rank] = 0
        return f"rank {rank} has died, with the status {os.waitstatus_to_exitcode(ended[1])}"

    def _end(self) -> str:
        """Ends the ranks; gives the stacks of those that came to their limit."""
        for pipe in self._pipes:
            pipe.close()
        left = [process for process in self._processes if process]
        for process in left:
            os.kill(process, signal.SIGKILL)
        statuses_of(left)
        self._processes, self._pipes = [], []
        assert self._stacks is not None
        with self._stacks as stacks:
            stacks.seek(0)
            return stacks.read().decode()


def _serve(
    pipe: Connection, environment: dict[str, str], folder: Path, stacks: IO[bytes], longest_job_seconds: float
) -> None:
    """Does jobs until the other end is closed."""
    # The limit of a process is not that of a job.
    faulthandler.cancel_dump_traceback_later()
    torch.set_num_threads(1)
    world = join_world()
    _set_back(environment, folder)
    _send(pipe, (True, None))
    with suppress(EOFError):
        while True:
            job, arguments, keywords = pickle.loads(pipe.recv_bytes())
            faulthandler.dump_traceback_later(longest_job_seconds, file=stacks)
            try:
                answer = True, job(world, *arguments, **keywords)
            except BaseException:
                answer = False, traceback.format_exc()
            faulthandler.cancel_dump_traceback_later()
            _send(pipe, answer)
            del job, arguments, keywords, answer
            _set_back(environment, folder)


def _send(pipe: Connection, what: object) -> None:
    # `Connection.send` would hand tensors over in shared memory, which ends with the process that made it.
    pipe.send_bytes(pickle.dumps(what))


def _set_back(environment: dict[str, str], folder: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    arm("")
    unset_hf_deepspeed_config()
    gc.collect()
