"""Whether a thread waits in a collective, by its innermost calls."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from megaslm.engine import cpu_group
from megaslm.health.stacks import is_in_collective, own_stacks

PACKAGES = "/venv/lib/python3.11/site-packages"
C10D = f"{PACKAGES}/torch/distributed/distributed_c10d.py"
AGREEMENT = str(Path(cpu_group.__file__))
ZERO = f"{PACKAGES}/deepspeed/runtime/zero/partition_parameters.py"
NVTX = f"{PACKAGES}/deepspeed/utils/nvtx.py"


def is_seen_to_wait(*calls: tuple[str, str]) -> bool:
    """The answer while functions of files, the outermost first, call one another."""
    inner: Callable[[], bool] | None = None
    for file, name in reversed(calls):
        scope = {"inner": inner, "is_in_collective": is_in_collective, "sys": sys}
        text = f"def {name}(): return inner() if inner else is_in_collective(sys._getframe())"
        exec(compile(text, file, "exec"), scope)
        inner = scope[name]  # type: ignore[assignment]
    assert inner is not None
    return inner()


@pytest.mark.parametrize(
    ("calls", "waits"),
    [
        ([("/project/loop.py", "step"), (C10D, "all_reduce")], True),
        ([(ZERO, "fetch"), (f"{PACKAGES}/deepspeed/comm/comm.py", "barrier")], True),
        ([("/project/saver.py", "wait"), (AGREEMENT, "read")], True),
        # What was begun before is waited for with a call of its own.
        ([(ZERO, "fetch"), (ZERO, "wait")], True),
        ([(ZERO, "fetch"), (ZERO, "wait"), (NVTX, "wrapped_fn")], True),
        ([(ZERO, "step"), (NVTX, "wrapped_fn")], False),
        ([(C10D, "all_reduce"), ("/project/hooks.py", "sleep")], False),
        ([(f"{PACKAGES}/torch/distributed/checkpoint/filesystem.py", "write")], False),
        ([("/usr/lib/python3.11/threading.py", "wait")], False),
        ([("/usr/lib/python3.11/subprocess.py", "wait")], False),
    ],
)
def test_only_who_waits_for_other_ranks_is_seen_to_wait(calls: list[tuple[str, str]], waits: bool) -> None:
    assert is_seen_to_wait(*calls) == waits


def test_a_thread_that_has_ended_does_not_wait() -> None:
    assert not is_in_collective(None)


def test_the_stacks_of_all_threads_are_shown() -> None:
    done = threading.Event()

    def stay_here() -> None:
        done.wait()

    thread = threading.Thread(target=stay_here)
    thread.start()
    try:
        stacks = own_stacks().decode()
    finally:
        done.set()
        thread.join()
    assert "in stay_here" in stacks
    assert "in test_the_stacks_of_all_threads_are_shown" in stacks
