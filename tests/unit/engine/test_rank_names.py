"""Ranks in messages: by host, in ranges."""

import pytest

from megaslm.engine.rank_names import Rank, name_absent, name_numbers, name_ranks


def test_ranks_are_named_by_host_and_range() -> None:
    ranks = [Rank(number, f"node-{number // 8}") for number in (0, 1, 2, 3, 5, 9, 15)]
    assert name_ranks(ranks) == "ranks 0-3, 5 on node-0 and ranks 9, 15 on node-1"
    assert name_ranks(ranks[:1]) == "rank 0 on node-0"
    assert name_numbers([4, 2, 3]) == "ranks 2-4"
    assert name_numbers([7]) == "rank 7"


def test_ranks_that_have_not_come_are_named_by_the_hosts_that_the_launcher_has_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEGASLM_HOSTS", "node-1:2,node-2:3,::1:1")
    assert name_absent([1, 2, 4], 6) == "rank 1 on node-1 and ranks 2, 4 on node-2"
    assert name_absent([5], 6) == "rank 5 on ::1"
    assert name_absent([1, 2, 3], 5) == "ranks 1-3", "those of another job"
    for nothing in ("", "node-1", "node-1:x"):
        monkeypatch.setenv("MEGASLM_HOSTS", nothing)
        assert name_absent([1], 2) == "rank 1"
    monkeypatch.delenv("MEGASLM_HOSTS")
    assert name_absent([1], 2) == "rank 1"
