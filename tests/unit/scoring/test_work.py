"""How a part is divided into ranges of rows, and what makes two ranges the same task."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from megaslm.dataset.manifest import Part
from megaslm.scoring.derivation_plan import SourcePart
from megaslm.scoring.work import ranges_of, who_works
from tests.messages import Says

PART = SourcePart(
    "train",
    "a",
    Part(name="part-00000", rows=9000, tokens_sha256="0" * 64, ref_loss_sha256=None, index_sha256="", bytes=1),
)


def names(item: SourcePart, made_by: str) -> set[str]:
    return {each.name for each in ranges_of(item, seq_len=512, batch_rows=16, made_by=made_by)}


@given(rows=st.integers(1, 50_000), seq_len=st.sampled_from([500, 2048, 1 << 18]), batch_rows=st.integers(1, 70))
def test_ranges_cover_a_part_and_begin_at_whole_batches(rows: int, seq_len: int, batch_rows: int) -> None:
    item = replace(PART, part=PART.part.model_copy(update={"rows": rows}))
    ranges = ranges_of(item, seq_len, batch_rows, "model one")
    assert [0, *(each.rows.stop for each in ranges)] == [*(each.rows.start for each in ranges), rows]
    assert not any(each.rows.start % batch_rows for each in ranges)
    assert len(ranges) <= 32
    assert len({each.name for each in ranges}) == len(ranges)


def test_rows_that_are_scored_in_another_way_or_are_others_are_other_tasks() -> None:
    one, again = names(PART, "model one"), names(PART, "model one")
    assert len(one) > 1
    assert one == again
    assert not one & names(PART, "model two")
    assert not one & names(replace(PART, part=PART.part.model_copy(update={"tokens_sha256": "1" * 64})), "model one")


def test_ranks_that_will_wait_are_told_of_and_why(says: Says) -> None:
    says(who_works([2368, 112], 2), "2 tasks", "2 ranks", "95%", "262,144")
    says(who_works([2368], 2), "1 task", "2 ranks", "100%")
    says(who_works([2368], 1), "1 task", "1 rank")
    says(who_works([2368, 2368, 112], 2), "3 tasks", "2 ranks")
    says(who_works([], 2), "0 tasks", "2 ranks")
