"""A sigmoid through each token's losses: a token that is learned in one step (arXiv 2606.29858).

The curve is L(x) = end + height · s((midpoint - x) / width) with the logistic function s. For a given midpoint and
width it is linear in end and height, whose best values are known in closed form. So only two parameters are searched:
first on a grid, then on finer and finer grids around the best point, for all tokens at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_MEASUREMENTS = 6
"""Two more than the parameters."""
LEAST_R2 = 0.9
"""A token is learned in a step if the sigmoid explains at least this share of the variance of its losses …"""
LEAST_HEIGHT_NATS = 0.2
"""… falls by at least this much …"""
LEAST_SEEN = 0.8
"""… and does at least this share of its fall between the first and the last measurement."""
_MIDPOINTS = 41
_WIDTHS = np.geomspace(0.01, 0.5, 12)
_REFINEMENTS = 8
_TOKENS_AT_ONCE = 16_384
# Below it a curve is flat within the measured range, up to rounding.
_LEAST_NORM = 1e-6
_Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Sigmoids:
    """The best sigmoid of each of T tokens."""

    end: NDArray[np.float64]
    """(T,) nats, far after the midpoint."""
    height: NDArray[np.float64]
    """(T,) nats from there up to the level far before it; negative where the loss rises."""
    midpoint: NDArray[np.float64]
    """(T,) the x halfway, within the measured range."""
    width: NDArray[np.float64]
    """(T,) in units of x; the middle 80% of the fall take 4.4 widths."""
    r2: NDArray[np.float64]
    """(T,) the share of the variance of the losses that the curve explains; 0 for losses that do not vary."""
    seen: NDArray[np.float64]
    """(T,) the share of the fall that lies within the measured range. Where it is small, end and height are guesses."""

    @property
    def is_step(self) -> NDArray[np.bool_]:
        """(T,), whether the token is learned in a step."""
        return (self.r2 >= LEAST_R2) & (self.height >= LEAST_HEIGHT_NATS) & (self.seen >= LEAST_SEEN)


def fit_sigmoids(x: NDArray[np.float64], losses: NDArray[np.floating]) -> Sigmoids:
    """The sigmoids of least squares through (T, n) losses at (n,) rising points; n is at least `LEAST_MEASUREMENTS`."""
    parts = [
        _fit((x - x[0]) / (x[-1] - x[0]), losses[start : start + _TOKENS_AT_ONCE].astype(np.float64))
        for start in range(0, len(losses), _TOKENS_AT_ONCE)
    ]
    end, height, midpoint, width, r2, seen = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Sigmoids(end, height, x[0] + midpoint * (x[-1] - x[0]), width * (x[-1] - x[0]), r2, seen)


def _fit(x: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[_Floats, ...]:
    """On x from 0 to 1: end, height, midpoint, width, R² and the seen share, (T,) each."""
    mean = losses.mean(axis=1)
    centred = losses - mean[:, None]
    variance = (centred**2).sum(axis=1)
    grid = np.stack(np.meshgrid(np.linspace(0, 1, _MIDPOINTS), np.log(_WIDTHS), indexing="ij"), axis=-1).reshape(-1, 2)
    basis, norm = _basis(x, grid[:, 0], grid[:, 1])
    projected = centred @ basis.T
    explained = np.where(norm > 0, projected**2 / np.where(norm > 0, norm, 1), 0)
    midpoint, log_width = grid[explained.argmax(axis=1)].T
    steps = np.array([1 / (_MIDPOINTS - 1), np.log(_WIDTHS[1] / _WIDTHS[0])])
    # The search needs no more than single precision, which is several times faster.
    rough = centred.astype(np.float32)
    for _ in range(_REFINEMENTS):
        midpoint, log_width = _best_around(x, rough, midpoint, log_width, steps)
        steps = steps / 2
    basis, norm = _basis(x, midpoint, log_width)
    height = np.where(norm > 0, (centred * basis).sum(axis=1) / np.where(norm > 0, norm, 1), 0)
    r2 = np.where(variance > 0, height**2 * norm / np.where(variance > 0, variance, 1), 0)
    curve = _curve(x, midpoint, log_width)
    return mean - height * curve.mean(axis=1), height, midpoint, np.exp(log_width), r2, curve[:, 0] - curve[:, -1]


def _best_around(
    x: NDArray[np.float64],
    centred: NDArray[np.float32],
    midpoint: NDArray[np.float64],
    log_width: NDArray[np.float64],
    steps: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best of nine pairs around each token's midpoint and width, which the pairs include."""
    best = np.full(len(centred), -1.0)
    found = midpoint, log_width
    for right in (0.0, -1.0, 1.0):
        for wider in (0.0, -1.0, 1.0):
            m = np.clip(midpoint + right * steps[0], 0, 1)
            w = np.clip(log_width + wider * steps[1], np.log(_WIDTHS[0]), np.log(_WIDTHS[-1]))
            basis, norm = _basis(x.astype(np.float32), m.astype(np.float32), w.astype(np.float32))
            explained = np.where(norm > 0, (centred * basis).sum(axis=1) ** 2 / np.where(norm > 0, norm, 1), 0)
            better = explained > best
            best = np.where(better, explained, best)
            found = np.where(better, m, found[0]), np.where(better, w, found[1])
    return found


def _curve(x: _Floats, midpoint: _Floats, log_width: _Floats) -> _Floats:
    """(G, n) values of the logistic function, from 1 down to 0."""
    return 0.5 * (1 + np.tanh((midpoint[:, None] - x) / (2 * np.exp(log_width)[:, None])))


def _basis(x: _Floats, midpoint: _Floats, log_width: _Floats) -> tuple[_Floats, _Floats]:
    """(G, n) curves without their mean, and (G,) sums of their squares, 0 where a curve does not vary."""
    curve = _curve(x, midpoint, log_width)
    centred = curve - curve.mean(axis=1, keepdims=True)
    norm = (centred**2).sum(axis=1)
    return centred, np.where(norm > _LEAST_NORM, norm, 0)
