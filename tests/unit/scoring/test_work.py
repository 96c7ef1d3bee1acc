"""What makes two ranges of rows the same task."""

from dataclasses import replace

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
