"""Real processes that start in a moment: forked from one that has imported what takes seconds to import."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable

from megaslm.engine.distributed import end_process
from megaslm.errors import MegaSLMError


def fork(run: Callable[[], None], *, group: int = 0, **environment: str) -> int:
    """Runs `run` in a child, in a process group of its own or in `group`; it ends as a rank of MegaSLM does."""
    child = os.fork()
    if child == 0:
        status = 1
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


def fork_two_ranks(run: Callable[[], None]) -> list[int]:
    """Runs `run` in two ranks of one host and one process group, that of the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    first = fork(run, RANK="0", LOCAL_RANK="0", **shared)
    # The child does so too; whoever comes first, the second rank finds the group.
    os.setpgid(first, first)
    return [first, fork(run, group=first, RANK="1", LOCAL_RANK="1", **shared)]


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, "nothing happens any more"
        time.sleep(0.01)
