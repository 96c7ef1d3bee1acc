"""The windows in which a row is read by a model that sees fewer tokens at once than the row has."""

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """A stretch of a row's targets, read on its own."""

    start: int
    """The first target, and the first token of its context."""
    stop: int
    """The target after the last."""
    fresh: int
    """The first target that no window before this one holds: from here on its losses are taken."""


def windows_of(seq_len: int, window: int, stride: int) -> Iterator[Window]:
    """Windows of `window` targets that cover a row of `seq_len`, `stride` apart; the last ends where the row does.

    Every target is taken from the first window that holds it, in which it has the longest context: at least
    window - stride tokens, where there are as many before it.

    Raises:
        ValueError: not 1 ≤ stride ≤ window ≤ seq_len.
    """
    if not 1 <= stride <= window <= seq_len:
        raise ValueError(f"stride = {stride}, window = {window}, seq_len = {seq_len}: must not fall in this order")
    covered = 0
    while covered < seq_len:
        start = min(0 if covered == 0 else covered + stride - window, seq_len - window)
        yield Window(start, start + window, covered)
        covered = start + window
