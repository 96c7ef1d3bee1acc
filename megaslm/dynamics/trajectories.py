"""The losses of a run's probe tokens at every measured step, read from the files of `megaslm.observe.probe_files`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megaslm.errors import DataError
from megaslm.observe.display import counted
from megaslm.observe.probe_files import Measurement, ProbeRows, measured_steps, read_measurement, read_rows

LEAST_MEASUREMENTS = 3
"""A line through two points fits anything."""


@dataclass(frozen=True)
class Trajectories:
    """The losses of T probe tokens, the valid targets in row order, at n measured steps."""

    steps: NDArray[np.int64]
    """(n,), rising."""
    tokens_seen: NDArray[np.int64]
    """(n,) targets that the run had read by then, rising."""
    losses: NDArray[np.float32]
    """(T, n) in nats, all finite."""
    kept: NDArray[np.bool_] | None
    """(T, n), whether the run's selection keeps the token; None where a measurement does not say so."""
    row: NDArray[np.int64]
    """(T,), the place of the token's row among the probe rows."""
    position: NDArray[np.int64]
    """(T,), the place of the token in its row, from 1 on: the first token of a row is no target."""
    rows: ProbeRows
    non_finite_tokens: int = 0
    """Tokens left out because a loss of theirs is NaN or infinite."""
    non_finite_steps: tuple[int, ...] = ()
    """Measured steps left out because no loss is finite."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """(T,) token ids."""
        return self.rows.tokens[self.row, self.position].astype(np.int64)

    @property
    def domain(self) -> NDArray[np.int64]:
        """(T,) indices in `rows.domains`."""
        return self.rows.domain[self.row].astype(np.int64)

    @property
    def ref_loss(self) -> NDArray[np.float32] | None:
        """(T,) the reference's losses in nats; None where the rows are not scored."""
        stored = self.rows.ref_loss
        return None if stored is None else stored[self.row, self.position - 1].astype(np.float32)


def read_trajectories(folder: Path, run: Path) -> Trajectories:
    """The trajectories in the folder of a run's measurements. `run` is for messages.

    Raises:
        DataError: there are fewer than three measurements, or no token has a finite loss at each of them; or a file is
            corrupt.
    """
    rows = read_rows(folder)
    steps = measured_steps(folder) if rows is not None else []
    if rows is None or len(steps) < LEAST_MEASUREMENTS:
        raise DataError(_too_few(len(steps), run))
    found = [read_measurement(folder, step, rows) for step in steps]
    row, target = np.nonzero(rows.valid)
    if len(row) == 0:
        raise DataError(f"{folder}: none of the {len(rows.tokens)} probe rows has a valid target; probe other rows")
    usable = [measurement for measurement in found if np.isfinite(measurement.losses[row, target]).any()]
    left_out = tuple(sorted(set(steps) - {measurement.step for measurement in usable}))
    if len(usable) < LEAST_MEASUREMENTS:
        raise DataError(_too_few(len(usable), run))
    losses = np.stack([measurement.losses[row, target] for measurement in usable], axis=1)
    is_finite = np.isfinite(losses).all(axis=1)
    if not is_finite.any():
        raise DataError(
            f"{folder}: each of the {len(row):,} probe tokens has a loss that is NaN or infinite at one of the steps "
            f"{', '.join(str(measurement.step) for measurement in usable)}; look at the run's metrics.jsonl"
        )
    row, target = row[is_finite], target[is_finite]
    return Trajectories(
        steps=np.array([measurement.step for measurement in usable]),
        tokens_seen=np.array([measurement.tokens_seen for measurement in usable]),
        losses=losses if is_finite.all() else losses[is_finite],
        kept=_kept(usable, row, target),
        row=row,
        position=target + 1,
        rows=rows,
        non_finite_tokens=int((~is_finite).sum()),
        non_finite_steps=left_out,
    )


def _kept(
    measurements: list[Measurement], row: NDArray[np.int64], target: NDArray[np.int64]
) -> NDArray[np.bool_] | None:
    masks = [measurement.kept[row, target] for measurement in measurements if measurement.kept is not None]
    return np.stack(masks, axis=1) if len(masks) == len(measurements) else None


def _too_few(count: int, run: Path) -> str:
    return (
        f"{run}: has {counted(count, 'measurement')} of its probe tokens with finite losses; at least "
        f"{LEAST_MEASUREMENTS} are needed: train longer, set probe.every_tokens in the next run, or keep more "
        "checkpoints (checkpoint.keep_every_tokens), which `megaslm dynamics --checkpoints` measures"
    )
