"""The line through each token's losses and the class that follows from it (Rho-1, appendix D.1)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLASSES = ("H→H", "L→H", "H→L", "L→L")
"""The classes, by their numbers. H is a high loss, L a low one, at the start and at the end."""
HIGH, RISES, FALLS, LOW = range(4)
_BLOCK_TOKENS = 8192
CHANGE_NATS = 0.2
"""A line that changes by more is rising or falling (the paper's value)."""


@dataclass(frozen=True)
class Lines:
    """The least-squares line of each of T tokens over n measurements."""

    slope: NDArray[np.float64]
    """(T,) nats per unit of x."""
    intercept: NDArray[np.float64]
    """(T,) nats at x = 0."""
    change: NDArray[np.float64]
    """(T,) nats, ΔL = f(x_last) - f(x_first) of the line f."""
    fluctuation: NDArray[np.float64]
    """(T,) nats, the standard deviation of the losses around the line."""


def fit_lines(x: NDArray[np.float64], losses: NDArray[np.floating]) -> Lines:
    """The lines f(x) = a·x + b of least squares through (T, n) losses at (n,) points, not all of them equal.

    The paper's x is the number of the checkpoint. Ours is the number of targets read, which gives the same changes
    where measurements are evenly spaced.
    """
    slope = _slopes(x, losses)
    intercept, fluctuation = np.empty_like(slope), np.empty_like(slope)
    for block, values in _blocks(losses):
        intercept[block] = values.mean(axis=1) - slope[block] * x.mean()
        fluctuation[block] = (values - slope[block, None] * x - intercept[block, None]).std(axis=1)
    return Lines(slope, intercept, slope * (x[-1] - x[0]), fluctuation)


def _slopes(x: NDArray[np.float64], losses: NDArray[np.floating]) -> NDArray[np.float64]:
    centred = x - x.mean()
    slope = np.empty(len(losses))
    for block, values in _blocks(losses):
        slope[block] = values @ centred / (centred @ centred)
    return slope


def _blocks(losses: NDArray[np.floating]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """The losses in float64, some tokens at a time: all of them would take several times their memory."""
    for start in range(0, len(losses), _BLOCK_TOKENS):
        block = slice(start, start + _BLOCK_TOKENS)
        yield block, losses[block].astype(np.float64)


def classify(change: NDArray[np.float64], last: NDArray[np.floating]) -> NDArray[np.int8]:
    """The class of each token, (T,) indices into `CLASSES`, by the rule of the paper.

    A line that falls by more than 0.2 nats is H→L, one that rises by more is L→H. Of the others those whose `last` loss
    is at most the mean of all tokens' last losses are L→L, those above it H→H.
    """
    flat = np.where(last <= last.astype(np.float64).mean(), LOW, HIGH)
    return np.where(change < -CHANGE_NATS, FALLS, np.where(change > CHANGE_NATS, RISES, flat)).astype(np.int8)


def shares(classes: NDArray[np.int8]) -> NDArray[np.float64]:
    """The share of tokens of each class, (4,); zeros where there is no token."""
    counts = np.bincount(classes, minlength=len(CLASSES))
    return counts / max(1, counts.sum())


def shares_over_time(x: NDArray[np.float64], losses: NDArray[np.floating], least: int) -> NDArray[np.float64]:
    """The shares that the first m measurements alone give, for m from `least` to n: (n - least + 1, 4)."""
    changes = ((m, _slopes(x[:m], losses[:, :m]) * (x[m - 1] - x[0])) for m in range(least, len(x) + 1))
    return np.stack([shares(classify(change, losses[:, m - 1])) for m, change in changes])
