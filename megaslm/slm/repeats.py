"""Rows that come more than once in a step: their copies are numbered, so that each target has a key of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

AllGather = Callable[[Tensor], Tensor]
"""Gathers a tensor of one shape from all ranks, stacked in their order; every rank gets the whole."""


def earlier_copies(rows: Tensor, rank: int, all_gather: AllGather) -> Tensor:
    """How many copies of each row come before it in the step: 0 for all where no row comes twice.

    Ranks follow one another. Which of two copies is the first depends on the layout; since they are alike, what is
    selected of the row does not.

    Args:
        rows: (n,) int64, the rows of this rank's micro-batches of one step; each rank brings equally many.
        rank: of this process.
        all_gather: called once.

    Returns:
        (n,) int64.
    """
    of_ranks = all_gather(rows)
    everywhere = of_ranks.flatten()
    order = everywhere.argsort(stable=True)
    ordered = everywhere[order]
    places = torch.arange(len(ordered), device=rows.device)
    opens_copies = torch.ones_like(ordered, dtype=torch.bool)
    opens_copies[1:] = ordered[1:] != ordered[:-1]
    first_places = places.where(opens_copies, 0).cummax(0).values
    return torch.empty_like(everywhere).scatter_(0, order, places - first_places).view_as(of_ranks)[rank]
