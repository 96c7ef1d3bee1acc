"""How exact selection over several micro-steps gets its losses: which way is taken, and what the run says of it."""

import pytest

from megaslm.config.selection import SlmSection
from megaslm.engine.zero import KEEPS_GRAPHS
from megaslm.errors import ConfigError
from megaslm.training.exact_way import ExactWay, chosen_way
from tests.messages import Says

GB = 10**9
KNOWN = KEEPS_GRAPHS[-1]


def way(exact_by: str, *, deepspeed: str = KNOWN, needed_bytes: int = 2 * GB, left_bytes: int = 100 * GB) -> ExactWay:
    slm = SlmSection.model_validate({"exact_by": exact_by})
    return chosen_way(slm, 4, deepspeed, needed_bytes=needed_bytes, left_bytes=left_bytes)


def test_graphs_are_kept_where_half_of_the_memory_left_holds_them(says: Says) -> None:
    found = way("auto", needed_bytes=2 * GB, left_bytes=4 * GB)
    assert found.keeps_graphs
    says(str(found.line), "4 micro-steps", "2.0 GB", "slm.exact_by = second_pass")


@pytest.mark.parametrize(("left_bytes", "may_take"), [(3 * GB, "1.5 GB"), (-GB, "0 bytes")])
def test_a_second_pass_is_made_where_it_does_not(left_bytes: int, may_take: str, says: Says) -> None:
    found = way("auto", needed_bytes=2 * GB, left_bytes=left_bytes)
    assert not found.keeps_graphs
    says(str(found.line), "2.0 GB", may_take)


def test_a_second_pass_is_made_under_an_unknown_deepspeed(says: Says) -> None:
    found = way("auto", deepspeed="9.9.9")
    assert not found.keeps_graphs
    says(str(found.line), KNOWN, "9.9.9")


def test_a_way_that_is_asked_for_is_taken_whatever_the_memory(says: Says) -> None:
    assert way("kept_graphs", left_bytes=0).keeps_graphs
    found = way("second_pass")
    assert not found.keeps_graphs
    says(str(found.line), "slm.exact_by = second_pass")


def test_kept_graphs_are_refused_under_an_unknown_deepspeed(says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        way("kept_graphs", deepspeed="9.9.9")
    says(refused, "slm.exact_by = kept_graphs", KNOWN, "9.9.9", "second_pass")
