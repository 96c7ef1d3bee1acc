"""A message about a skipped step names the rows that are to blame, and not too many of them."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from megaslm.slm.choice import Every, HeadOutput
from megaslm.slm.keys import target_keys
from megaslm.slm.targets import Targets
from megaslm.training.skipped_step import why_left_out, why_unsortable
from tests.chosen import output_of
from tests.messages import Says

ROWS, SEQ_LEN = 12, 4


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def targets_of(rows: torch.Tensor) -> Targets:
    valid = torch.ones(len(rows), SEQ_LEN, dtype=torch.bool)
    return Targets(valid, target_keys(rows, 0, SEQ_LEN))


def row_name(row: int) -> str:
    return f"web:{row}"


def test_ten_rows_are_named_in_order_and_of_more_that_there_are(says: Says) -> None:
    targets = targets_of(torch.arange(ROWS))
    ten, eleven = (range(0, rows * SEQ_LEN, SEQ_LEN) for rows in (10, 11))
    named = ", ".join(f"web:{row}" for row in range(10))
    says(why_unsortable(targets, ten, row_name), named)
    said = why_unsortable(targets, eleven, row_name)
    says(said, "11", named)


def test_places_are_counted_through_the_step(says: Says) -> None:
    targets = targets_of(torch.tensor([3, 8, 5]))
    says(why_unsortable(targets, [5, 6, 11], row_name), "web:5", "web:8")


def test_losses_of_targets_that_were_not_chosen_are_not_to_blame(says: Says) -> None:
    targets = targets_of(torch.tensor([3, 8]))
    losses = [torch.tensor([[1.0, torch.inf, torch.nan, 1.0]]), torch.tensor([[1.0, 1.0, torch.inf, 1.0]])]
    chosen = [Every(torch.tensor([True, False, False, True])), Every(torch.tensor([True, True, True, False]))]
    output = HeadOutput.of_step([output_of(*pair) for pair in zip(chosen, losses, strict=True)])
    says(why_left_out(targets, chosen, output, row_name), "web:8")
    of_none = [Every(torch.zeros(SEQ_LEN, dtype=torch.bool))] * 2
    output = HeadOutput.of_step([output_of(*pair) for pair in zip(of_none, losses, strict=True)])
    says(why_left_out(targets, of_none, output, row_name))
