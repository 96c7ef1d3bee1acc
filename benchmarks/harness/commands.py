"""What a command took."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Of the commands that are run and waited for within: `seconds`, and the seconds `of processor`, known at the end.

    Other work on the same cores prolongs the first alone.
    """
    took: dict[str, float] = {}
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    yield took
    took["seconds"], after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    took["of processor"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
