"""Spans: the targets around each target, within its document, whose mean it is sorted by in place of its own value.

The sums are of whole numbers. They are therefore exact, and do not depend on the distribution of rows over ranks.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Granularity = Literal["token", "span", "document"]
_PARTS_PER_NAT = 1 << 20
# The sum of 2^22 values of this size is below 2^63 parts.
_LIMIT_NATS = float(1 << 20)


@dataclass(frozen=True)
class SpanRule:
    """The span of a target.

    `eos_id`: ends documents. `reach`: most targets on each side; None for all of its document in the row.
    """

    eos_id: int
    reach: int | None

    @classmethod
    def of(cls, granularity: Granularity, span_reach: int, eos_id: int) -> "SpanRule | None":
        """The rule of a granularity; None where each target is sorted by its own value. Only `span` has a reach."""
        return None if granularity == "token" else cls(eos_id, span_reach if granularity == "span" else None)

    def bounds(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The number of targets in the span before each target, and after it.

        Args:
            tokens: (R, L+1) int64; target i is token i+1.

        Returns:
            (R, L) int64 each.
        """
        opens = tokens[:, :-1] == self.eos_id
        length = opens.shape[1]
        places = torch.arange(length, device=tokens.device)
        first = places.where(opens, 0).cummax(1).values
        next_first = places.where(opens, length).flip(1).cummin(1).values.flip(1)
        last = pad(next_first[:, 1:], (0, 1), value=length) - 1
        most = length if self.reach is None else self.reach
        return (places - first).clamp(max=most), (last - places).clamp(max=most)


def span_means(values: Tensor, counted: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The mean of the counted values in each target's span, to 2^-20 nats.

    A value that is NaN or infinite is in no mean, and stands in the place of its own target's mean.

    Args:
        values: float32 in nats, of any shape whose targets lie row by row.
        counted: bool of the same shape, the valid targets.
        before: int64 of the same shape, see `SpanRule.bounds`.
        after: int64 of the same shape.

    Returns:
        float32 of the same shape; 0 where a span has no counted target.
    """
    flat = values.flatten()
    is_finite = torch.isfinite(flat)
    counts = counted.flatten() & is_finite
    parts = (flat.double().clamp(-_LIMIT_NATS, _LIMIT_NATS) * _PARTS_PER_NAT).floor().where(counts, 0.0)
    sums_up_to = pad(parts.to(torch.int64).cumsum(0), (1, 0))
    counts_up_to = pad(counts.cumsum(0), (1, 0))
    places = torch.arange(len(flat), device=flat.device)
    start, stop = places - before.flatten(), places + after.flatten() + 1
    total, count = (up_to[stop] - up_to[start] for up_to in (sums_up_to, counts_up_to))
    means = (total.double() / (count.clamp(min=1) * _PARTS_PER_NAT)).float()
    return means.where(is_finite, flat).view_as(values)
