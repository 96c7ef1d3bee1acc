"""What a dataset stores of a reference's measurements."""

import torch

from megaslm.model.reference_model import as_stored

MOST = 65504.0
"""The largest number of float16."""


def test_losses_are_stored_as_they_are_up_to_the_largest_of_float16() -> None:
    nats = torch.tensor([[0.5, 11.0, 60000.0, 70000.0], [-1e-6, torch.inf, 3.0, torch.nan]])
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    stored = as_stored(nats, valid)
    assert stored.dtype == torch.float16
    assert stored.tolist() == [[0.5, 11.0, 60000.0, MOST], [0.0, MOST, 0.0, 0.0]]
