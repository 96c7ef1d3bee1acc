"""Formulas compute what NumPy does in float32, bit for bit, and leave what is non-finite to the selection."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megaslm.config.expression import expression_of
from megaslm.slm.criterion import Candidates, Formula
from megaslm.slm.keys import target_keys
from megaslm.slm.targets import Targets

Column = NDArray[np.float32]


def formula(text: str) -> Formula:
    expression = expression_of(text)
    assert expression is not None
    return Formula(expression.terms)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss - ref_loss", lambda a, b: a - b),
        ("ref_loss - loss", lambda a, b: b - a),
        ("loss / 3", lambda a, b: a / np.float32(3)),
        ("0.1 / loss", lambda a, b: np.float32(0.1) / a),
        ("loss - 0.3 * ref_loss", lambda a, b: a - np.float32(0.3) * b),
        ("-loss + abs(ref_loss - 2.5)", lambda a, b: -a + np.abs(b - np.float32(2.5))),
        (
            "min(loss, ref_loss, 2) - max(loss, 1)",
            lambda a, b: np.minimum(np.minimum(a, b), np.float32(2)) - np.maximum(a, np.float32(1)),
        ),
    ],
)
def test_a_formula_is_that_of_numpy(text: str, expected: Callable[[Column, Column], Column]) -> None:
    loss, ref_loss = 6 * torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))
    found = formula(text).of({"loss": loss, "ref_loss": ref_loss})
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected(loss.numpy(), ref_loss.numpy()))


def test_a_target_without_a_finite_value_cannot_be_sorted() -> None:
    valid = torch.tensor([[True, True, True, True, False]])
    ref_loss = torch.tensor([[2.0, 0.0, 0.0, torch.nan, 0.0]])
    targets = Targets(valid, target_keys(torch.tensor([0]), 0, 5), {"ref_loss": ref_loss})
    candidates = Candidates(targets, valid, formula("max(loss / ref_loss, 1)"))
    values = candidates.values(torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]]))
    assert candidates.unsortable(values).tolist() == [[False, True, True, True, False]]
