"""The losses of a task, from the nats of its items."""

import math

import pytest

from megaslm.tasks.losses import MeasuredItem, losses_of

TWO_BITS = 2 * math.log(2)
"""In nats."""


def test_bits_per_byte_are_those_of_all_solutions_together() -> None:
    found = losses_of(
        [
            MeasuredItem(item=1, solution_nats=4 * TWO_BITS, solution_tokens=2, solution_bytes=4),
            MeasuredItem(item=0, solution_nats=12 * TWO_BITS, solution_tokens=3, solution_bytes=4),
        ]
    )
    assert found.bits_per_byte == pytest.approx(4.0)
    assert found.nats_per_token == pytest.approx([4 * TWO_BITS, 2 * TWO_BITS])
    assert losses_of([]).bits_per_byte is None


def test_a_choice_may_be_the_likeliest_alone_or_per_byte() -> None:
    found = losses_of([MeasuredItem(item=0, choice_nats=(3.0, 4.0), choice_bytes=(1, 8), right_choice=1)])
    assert (found.is_chosen, found.is_chosen_per_byte) == ([False], [True])
