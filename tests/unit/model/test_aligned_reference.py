"""Which of its own targets an aligned reference has to read for some targets of the rows."""

import numpy as np
import pytest

from megaslm.model.aligned_reference import StreamDocument, _Reading

BEGINS = [0, 2, 3]
"""Of the rows' tokens in a text of five characters. The document's targets are 10 to 13, the last one its EOS."""


def reading(own_begins: list[int]) -> _Reading:
    document = StreamDocument(10, np.arange(len(BEGINS)), has_eos=True)
    ids = np.zeros(len(own_begins) + 2, dtype=np.int64)
    return _Reading(document, ids, np.array(own_begins, dtype=np.int64), np.array(BEGINS), np.arange(6), 1)


@pytest.mark.parametrize(
    ("targets", "needed"),
    [
        (range(50), range(4)),
        (range(11), range(2)),
        (range(12, 13), range(2, 3)),
        (range(13, 14), range(3, 4)),
        (range(11, 12), range(2)),
    ],
)
def test_whole_stretches_are_needed(targets: range, needed: range) -> None:
    """The reference's tokens begin at 0, 1 and 3: the stretches are the characters 0 to 2 and 3 to 4."""
    assert reading([0, 1, 3]).needed(targets) == needed


def test_a_text_without_a_token_of_the_reference_has_the_loss_of_its_end_alone() -> None:
    nothing = reading([])
    assert nothing.needed(range(50)) == range(1)
    assert len(nothing.needed(range(10, 12))) == 0
    assert nothing.carried_over().tolist() == [[0.0, 0.0, 0.0, 0.0]]
