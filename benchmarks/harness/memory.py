"""The memory of processes, as Linux counts it: a peak over what was held before, and that of a whole family."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median


def peak_bytes(task: Callable[[str], None], name: str, repetitions: int = 3) -> float:
    """What `task(name)` adds to the peak memory of a fresh process, over `task("nothing")`: the median of several."""
    return median(_peak(task, name) - _peak(task, "nothing") for _ in range(repetitions))


def forget_peak() -> None:
    """From here on the peak counts: for a task whose inputs take more to make than they hold."""
    Path("/proc/self/clear_refs").write_text("5")


def bytes_beyond(task: Callable[[], object]) -> int:
    """What a task adds to the resident memory of this process, at most."""
    forget_peak()
    before = _peak_of_this_process()
    task()
    return _peak_of_this_process() - before


def family_bytes(pid: int) -> int:
    """The memory of a process and its descendants; what several of them share counts once."""
    return sum(map(_proportional_bytes, family(pid)))


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in family(int(child)))]


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _peak(task: Callable[[str], None], name: str) -> int:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(task, name, sender))
    process.start()
    sender.close()
    found = int(receiver.recv())
    process.join()
    return found


def _measure(task: Callable[[str], None], name: str, sender: Connection) -> None:
    task(name)
    sender.send(_peak_of_this_process())


def _peak_of_this_process() -> int:
    # Not ru_maxrss, which a process inherits from the one that started it.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
