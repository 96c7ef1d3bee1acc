"""Statistics of a step's selection, summed on the device: one vector per step, read when the run reports."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from megaslm.slm.choice import HeadOutput, no_threshold
from megaslm.slm.targets import Targets

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_EXCESS_LIMIT_NATS = 16.0
_EXCESS_BINS = 1024
_BINS_PER_NAT = _EXCESS_BINS / (2 * _EXCESS_LIMIT_NATS)
_COARSE_NATS = 4.0
_COARSE_BINS = 32
_SUMS = 6
_DOMAIN_SUMS = 3
POSITION_BANDS = 8
"""Equally long parts of a row, of which the selected ratio is known."""


@dataclass(frozen=True)
class SelectionSummary:
    """One step, over all ranks and micro-steps.

    `selected_loss`: mean loss of the selected targets, in nats, without weights. `mean_weight`: the sum of all weights
    divided by the number of selected targets; None where there are no weights. `all_loss`: mean loss of the valid
    targets, in nats; None where unselected ones were not measured, or a loss is non-finite. `not_finite`: measured
    targets with a non-finite loss or excess loss. `excess_quantiles`: of the valid targets, to within 1/32 nat and
    clipped to ±16 nats; empty where no reference is known, unselected targets were not measured, or some are
    non-finite. `excess_counts`: the same targets in 32 bins of 1/4 nat around 0, of which the
    outer two hold all beyond; empty as the quantiles. `domain_ratio`: selected / valid targets of each domain with
    any. `domain_rows`: rows of each domain. `position_selected`, `position_valid`: targets in each of the
    `POSITION_BANDS` of the rows. `attended`: pairs of a token and one that it attends to, half of each document's
    square.
    """

    selected_loss: float
    mean_weight: float | None
    all_loss: float | None
    selected: int
    valid: int
    not_finite: int
    excess_quantiles: dict[str, float]
    excess_counts: tuple[int, ...]
    domain_ratio: dict[int, float]
    domain_rows: tuple[int, ...]
    position_selected: tuple[int, ...]
    position_valid: tuple[int, ...]
    attended: float


def selection_sums(
    output: HeadOutput,
    measured: Tensor,
    targets: Targets,
    domain: Tensor,
    domain_count: int,
    document_bounds: Tensor | None = None,
) -> Tensor:
    """The sums of one micro-batch, (n,) float64. Those of a step's micro-batches are added. The host reads nothing.

    Args:
        output: of the head, with a detached total; what is of the rows is (B, L).
        measured: (B, L) bool, where the losses are those of the model.
        targets: the B·L targets.
        domain: (B,) int64, below `domain_count`.
        domain_count: domains of the run.
        document_bounds: (documents + 1,) int32, the first token of each document of the B·L inputs, then B·L; None
            where each row counts as one document.
    """
    losses, (rows, length) = output.losses, output.losses.shape
    measured = measured & targets.valid
    ref_loss = targets.columns.get("ref_loss")
    values = losses if ref_loss is None else losses - ref_loss
    if document_bounds is None:
        attended = torch.full((), rows * length**2 / 2, dtype=torch.float64, device=losses.device)
    else:
        attended = document_bounds.diff().double().square().sum() / 2
    weights = torch.full((), torch.nan, dtype=torch.float64, device=losses.device)
    if output.applied is not None:
        weights = output.applied.double().sum()
    totals = torch.stack(
        [
            losses.double().where(output.mask, 0.0).sum(),
            weights,
            losses.double().where(measured, 0.0).sum(),
            measured.sum().double(),
            (measured & ~torch.isfinite(values)).sum().double(),
            attended,
        ]
    )
    histogram = torch.zeros(_EXCESS_BINS, dtype=torch.float64, device=losses.device)
    if ref_loss is not None:
        place = (values / _EXCESS_LIMIT_NATS + 1.0) * (_EXCESS_BINS / 2)
        place = place.nan_to_num().clamp(0, _EXCESS_BINS - 1).to(torch.int64)
        # Sums of whole numbers do not depend on the order, also on a GPU.
        histogram.scatter_add_(0, place.flatten(), measured.flatten().double())
    counted = torch.stack([output.mask, targets.valid])
    band = torch.arange(length, device=losses.device) * POSITION_BANDS // length
    by_position = torch.zeros(2, POSITION_BANDS, dtype=torch.float64, device=losses.device)
    by_position.scatter_add_(1, band.expand(2, -1), counted.sum(1).double())
    of_rows = torch.cat([counted.sum(2), torch.ones_like(domain)[None]]).double()
    by_domain = torch.zeros(_DOMAIN_SUMS, domain_count, dtype=torch.float64, device=losses.device)
    by_domain.scatter_add_(1, domain.expand(_DOMAIN_SUMS, -1), of_rows)
    return torch.cat([totals, histogram, by_position.flatten(), by_domain.flatten()])


def sums_of_unused(
    targets: Targets, domain: Tensor, domain_count: int, document_bounds: Tensor | None = None
) -> Tensor:
    """The sums of a micro-batch without training, see `selection_sums`: its rows and valid targets."""
    none = torch.zeros_like(targets.valid)
    losses = torch.zeros_like(targets.valid, dtype=torch.float32)
    output = HeadOutput(losses.sum(), losses, none, no_threshold(losses.device))
    return selection_sums(output, none, targets, domain, domain_count, document_bounds)


def summarise(sums: Sequence[float]) -> SelectionSummary:
    """Reads the sums of a step, on the host."""
    selected_loss, weights, all_loss, measured, not_finite, attended = sums[:_SUMS]
    positions = _SUMS + _EXCESS_BINS
    histogram, by_position = sums[_SUMS:positions], sums[positions : positions + 2 * POSITION_BANDS]
    by_domain = sums[positions + 2 * POSITION_BANDS :]
    domain_count = len(by_domain) // _DOMAIN_SUMS
    selected, valid, rows = (
        by_domain[start : start + domain_count] for start in range(0, len(by_domain), domain_count)
    )
    complete = measured == sum(valid)
    has_excess = complete and not not_finite and any(histogram)
    return SelectionSummary(
        selected_loss=selected_loss / max(1.0, sum(selected)),
        mean_weight=None if math.isnan(weights) else weights / max(1.0, sum(selected)),
        all_loss=all_loss / max(1.0, measured) if complete and math.isfinite(all_loss) else None,
        selected=int(sum(selected)),
        valid=int(sum(valid)),
        not_finite=int(not_finite),
        excess_quantiles={f"p{round(100 * part):02d}": _quantile(histogram, part) for part in QUANTILES}
        if has_excess
        else {},
        excess_counts=_coarse(histogram) if has_excess else (),
        domain_ratio={number: selected[number] / count for number, count in enumerate(valid) if count},
        domain_rows=tuple(int(count) for count in rows),
        position_selected=tuple(int(count) for count in by_position[:POSITION_BANDS]),
        position_valid=tuple(int(count) for count in by_position[POSITION_BANDS:]),
        attended=attended,
    )


def _coarse(histogram: Sequence[float]) -> tuple[int, ...]:
    """Few bins of equal width around 0. The outer two hold all beyond."""
    width = int(2 * _COARSE_NATS / _COARSE_BINS * _BINS_PER_NAT)
    first = (_EXCESS_BINS - _COARSE_BINS * width) // 2
    inner = range(first + width, first + (_COARSE_BINS - 1) * width, width)
    edges = [0, *inner, first + (_COARSE_BINS - 1) * width, _EXCESS_BINS]
    return tuple(int(sum(histogram[left:right])) for left, right in pairwise(edges))


def _quantile(histogram: Sequence[float], part: float) -> float:
    """Linear interpolation within the bin."""
    wanted = part * math.fsum(histogram)
    below, width = 0.0, 2 * _EXCESS_LIMIT_NATS / _EXCESS_BINS
    for place, count in enumerate(histogram):
        if count and below + count >= wanted:
            return (place + (wanted - below) / count) * width - _EXCESS_LIMIT_NATS
        below += count
    return _EXCESS_LIMIT_NATS
