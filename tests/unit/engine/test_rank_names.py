"""Ranks in messages: by host, in ranges."""

from megaslm.engine.rank_names import Rank, name_numbers, name_ranks


def test_ranks_are_named_by_host_and_range() -> None:
    ranks = [Rank(number, f"node-{number // 8}") for number in (0, 1, 2, 3, 5, 9, 15)]
    assert name_ranks(ranks) == "ranks 0-3, 5 on node-0 and ranks 9, 15 on node-1"
    assert name_ranks(ranks[:1]) == "rank 0 on node-0"
    assert name_numbers([4, 2, 3]) == "ranks 2-4"
    assert name_numbers([7]) == "rank 7"
