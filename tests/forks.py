"""Real processes that start in a moment: forked from one that has imported what takes seconds to import."""

import faulthandler
import gc
import os
import socket
import sys
import time
import traceback
import weakref
from collections.abc import Callable

# What `deepspeed.initialize` imports, and a first save: no child is to read it again.
import deepspeed.module_inject.auto_ep_layer
import deepspeed.runtime.superoffload.superoffload_stage3
import numpy.ma  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  # Every model's.

import megaslm.engine.zero  # noqa: F401  # Before DeepSpeed's Muon, as in every run.
from megaslm.cli_output import write_whole_lines
from megaslm.engine.distributed import end_process
from megaslm.errors import MegaSLMError
from megaslm.model import traced_memory
from tests.shared_results import SharedResults

# isort: split
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

# The first rank of every run traces its model, which takes as long as a small run. A session traces each model once.
traced_memory._traced, traced_memory._counted = SharedResults(), SharedResults()

# A little before pytest gives up: where a child hangs, its stacks say at what.
_STACKS_AFTER_SECONDS = 280


def fork(run: Callable[[], None], *, group: int = 0, **environment: str) -> int:
    """Runs `run` in a child, in a process group of its own or in `group`; it ends as a rank of MegaSLM does."""
    child = os.fork()
    if child == 0:
        status = 1
        # DeepSpeed collects garbage as it starts. What came with the fork is none; to look through it would copy each
        # of its pages, which takes longer than a small run.
        gc.freeze()
        # What the parent's libraries close at its exit needs their threads, and a child has none of them:
        # fsspec would wait for its own.
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]
        # In a child torch makes its pool of threads anew at first use, and fails where two threads use it first.
        torch.set_num_threads(torch.get_num_threads())
        faulthandler.dump_traceback_later(_STACKS_AFTER_SECONDS, file=2)
        write_whole_lines()
        try:
            os.setpgid(0, group)
            os.environ.update(environment)
            run()
            status = 0
        except MegaSLMError as error:
            print(error, file=sys.stderr)
            status = error.exit_status
        except BaseException:
            traceback.print_exc()
        end_process(status)
    return child


def fork_ranks(world_size: int, run: Callable[[], None]) -> list[int]:
    """Runs `run` in so many ranks of one host and one process group, that of the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    size = str(world_size)
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    wait, hold = os.pipe()

    def run_when_all_are_there() -> None:
        # A first rank that is at its end at once would leave no group for the others to join.
        os.close(hold)
        os.read(wait, 1)
        os.close(wait)
        run()

    first = fork(run_when_all_are_there, RANK="0", LOCAL_RANK="0", **shared)
    # The child does so too; whoever comes first, the other ranks find the group.
    os.setpgid(first, first)
    others = [
        fork(run_when_all_are_there, group=first, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in range(1, world_size)
    ]
    os.close(hold)
    os.close(wait)
    return [first, *others]


def fork_two_ranks(run: Callable[[], None]) -> list[int]:
    """Runs `run` in two ranks."""
    return fork_ranks(2, run)


def statuses_of(processes: list[int]) -> list[int]:
    """The exit statuses, waited for; of a process that a signal ended, its number below 0."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, "nothing happens any more"
        time.sleep(0.01)
