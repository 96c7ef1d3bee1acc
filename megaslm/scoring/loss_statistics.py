"""Statistics of one part's losses, computed while it is scored: sum, histogram, hardest and easiest documents."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.dataset.loss_counts import LossCounts
from megaslm.dataset.score_summary import LOSS_BIN_EDGES, DocumentLoss, PartStatistics
from megaslm.slm.valid_targets import valid_targets

MOST_DOCUMENTS = 10
"""Documents kept at either end."""
FEWEST_TARGETS = 32
"""Valid targets of the shortest document that is compared. A mean of fewer losses says little."""

# Every float16 is a whole multiple of 2^-24, so integer sums are exact and do not depend on the order.
_UNITS_PER_NAT = 2.0**24


class LossStatistics:
    """Receives the rows of a part in order. The result does not depend on how they are cut into batches.

    The inputs of all rows form one stream. A document is a run of inputs without EOS, its BOS included. It has as many
    targets as inputs, without those that a target mask excludes, and its EOS is the last target. Where neighbouring
    rows share no token, the last token of a row is no input. If it is EOS, it ends a document all the same.
    """

    def __init__(self, eos_id: int, *, rows_share_a_token: bool = True) -> None:
        """`eos_id` ends every document and fills rows."""
        self._eos_id = eos_id
        self._rows_share_a_token = rows_share_a_token
        self._counts = LossCounts.of(np.empty(0, dtype=np.float16))
        self._seq_len = 0
        self._rows = 0
        self._row_ended_document = False
        self._unfinished: _Documents | None = None
        self._worst = self._best = _Documents.none()

    def add(
        self,
        tokens: NDArray[np.unsignedinteger],
        losses: NDArray[np.float16],
        target_mask: NDArray[np.uint8] | None = None,
    ) -> None:
        """Adds the next n > 0 rows of the part: (n, L+1) tokens, their (n, L) losses in nats and, where the dataset has
        one, their (n, L) target mask, all as stored."""
        self._seq_len = losses.shape[1]
        of_stream = losses.ravel()
        valid = valid_targets(tokens, self._eos_id, target_mask).ravel()
        self._counts += LossCounts.of(of_stream[valid])
        units = (of_stream.astype(np.float64) * _UNITS_PER_NAT).astype(np.int64)
        inside = valid_targets(tokens, self._eos_id).ravel()
        self._add_documents(inside, valid.astype(np.int64), np.where(valid, units, 0), self._begin_anew(tokens))
        self._rows += len(tokens)

    def finish(self) -> PartStatistics:
        """The statistics of all rows."""
        if self._unfinished is not None:
            self._keep(self._unfinished)
            self._unfinished = None
        counts, losses = self._counts.counts, self._counts.losses()
        bins = np.searchsorted(LOSS_BIN_EDGES, losses, side="right")
        histogram = np.bincount(bins, weights=counts, minlength=len(LOSS_BIN_EDGES) + 1).astype(np.int64)
        return PartStatistics(
            targets=self._counts.targets,
            loss_sum=math.fsum(counts * losses),
            loss_counts=self._counts.text(),
            histogram=tuple(histogram.tolist()),
            worst=self._worst.records(self._seq_len),
            best=self._best.records(self._seq_len),
        )

    def _begin_anew(self, tokens: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
        """For the (n · L,) inputs of rows: whether the row before ends with EOS, at the first input of each row."""
        ends = tokens[:, -1] == self._eos_id
        anew = np.zeros((len(tokens), tokens.shape[1] - 1), dtype=np.bool_)
        anew[:, 0] = np.append(self._row_ended_document, ends[:-1])
        self._row_ended_document = bool(ends[-1])
        return anew.ravel()

    def _add_documents(
        self,
        inside: NDArray[np.bool_],
        counted: NDArray[np.int64],
        units: NDArray[np.int64],
        anew: NDArray[np.bool_],
    ) -> None:
        """For (n,) inputs of the stream: whether each is not EOS, whether its target is valid (1 or 0), its target's
        loss in units (0 where it is not valid), and whether a document ended just before it."""
        starts = np.flatnonzero(inside & (anew | ~np.append(False, inside[:-1])))
        # Each sum extends to the next document's start. The inputs between two documents add 0.
        targets, sums = (
            np.add.reduceat(values, starts) if len(starts) else np.empty(0, dtype=np.int64)
            for values in (counted, units)
        )
        found = _Documents(self._places(starts, anew), targets, sums)
        if self._unfinished is not None:
            found = self._unfinished.followed_by(found, continues=bool(inside[0] and not anew[0]))
        self._unfinished = found.last() if inside[-1] else None
        self._keep(found.without_last() if inside[-1] else found)

    def _places(self, starts: NDArray[np.intp], anew: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The places of first tokens, as in `_Documents`. A document that begins with the last token of a row, which is
        no input there, has its first input in the next row."""
        rows, tokens = np.divmod(starts, self._seq_len)
        rows += self._rows
        is_cut = (tokens == 0) & (rows > 0) & ~anew[starts]
        return rows * (self._seq_len + 1) + tokens - (is_cut & (not self._rows_share_a_token))

    def _keep(self, found: "_Documents") -> None:
        long_enough = found.where(found.targets >= FEWEST_TARGETS)
        worst, best = self._worst.joined(long_enough), self._best.joined(long_enough)
        self._worst = worst.where(np.lexsort((worst.starts, -worst.means))[:MOST_DOCUMENTS])
        self._best = best.where(np.lexsort((best.starts, best.means))[:MOST_DOCUMENTS])


class _Documents(NamedTuple):
    """Documents in order, (n,) int64 each: place of the first token, counted over the seq_len + 1 tokens of each row;
    number of targets; sum of their losses."""

    starts: NDArray[np.int64]
    targets: NDArray[np.int64]
    units: NDArray[np.int64]

    @classmethod
    def none(cls) -> "_Documents":
        return cls(*np.empty((3, 0), dtype=np.int64))

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean losses in nats, (n,)."""
        return self.units / self.targets / _UNITS_PER_NAT

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "_Documents":
        return _Documents(*(column[chosen] for column in self))

    def joined(self, other: "_Documents") -> "_Documents":
        return _Documents(*(np.concatenate(columns) for columns in zip(self, other, strict=True)))

    def last(self) -> "_Documents":
        return self.where(slice(-1, None))

    def without_last(self) -> "_Documents":
        return self.where(slice(None, -1))

    def followed_by(self, later: "_Documents", *, continues: bool) -> "_Documents":
        """This one document and later ones. If `continues`, the first later one is its continuation."""
        if not continues:
            return self.joined(later)
        whole = _Documents(self.starts, self.targets + later.targets[:1], self.units + later.units[:1])
        return whole.joined(later.where(slice(1, None)))

    def records(self, seq_len: int) -> tuple[DocumentLoss, ...]:
        of_each = zip(self.starts.tolist(), self.targets.tolist(), self.means.tolist(), strict=True)
        return tuple(
            DocumentLoss(row=start // (seq_len + 1), token=start % (seq_len + 1), targets=targets, mean_loss=mean)
            for start, targets, mean in of_each
        )
