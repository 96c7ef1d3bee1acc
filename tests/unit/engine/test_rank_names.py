"""Ranks in messages: by host, in ranges."""

import pytest

from megaslm.engine.rank_names import Rank, name_absent, name_numbers, name_ranks
from tests.messages import Says


def test_ranks_are_named_by_host_and_range(says: Says) -> None:
    ranks = [Rank(number, f"node-{number // 8}") for number in (0, 1, 2, 3, 5, 9, 15)]
    says(name_ranks(ranks), "0-3, 5", "node-0", "9, 15", "node-1")
    says(name_ranks(ranks[:1]), "0", "node-0")
    assert "2-4" in name_numbers([4, 2, 3])
    assert "7" in name_numbers([7])


def test_ranks_that_have_not_come_are_named_by_the_hosts_that_the_launcher_has_told(
    monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.setenv("MEGASLM_HOSTS", "node-1:2,node-2:3,::1:1")
    says(name_absent([1, 2, 4], 6), "1", "node-1", "2, 4", "node-2")
    assert "::1" in name_absent([5], 6)
    assert name_absent([1, 2, 3], 5) == name_numbers([1, 2, 3]), "those of another job"
    for nothing in ("", "node-1", "node-1:x"):
        monkeypatch.setenv("MEGASLM_HOSTS", nothing)
        assert name_absent([1], 2) == name_numbers([1])
    monkeypatch.delenv("MEGASLM_HOSTS")
    assert name_absent([1], 2) == name_numbers([1])
