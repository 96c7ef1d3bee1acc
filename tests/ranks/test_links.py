"""Which connection between two hosts is a slow one, by planted speeds and over the real network of this host."""

import pytest

from megaslm.engine.distributed import join_world, leave_world
from megaslm.engine.rank_names import Rank
from megaslm.health.network_check import Link, slow_links, time_links
from tests.forks import fork_ranks, statuses_of
from tests.messages import Says


def ring(hosts: int, ranks_per_host: int, slow: dict[tuple[int, int], float]) -> list[Link]:
    """Links of 40 GB/s, but for some, by the numbers of their two hosts."""
    size = hosts * ranks_per_host
    ranks = [Rank(number, f"node-{number // ranks_per_host + 1}") for number in range(size)]
    links = [(ranks[number - ranks_per_host], ranks[number]) for number in range(size)]
    named = [(int(source.host[5:]), int(target.host[5:])) for source, target in links]
    return [Link(*link, 1e9 * slow.get(name, 40.0)) for link, name in zip(links, named, strict=True)]


def test_links_of_one_speed_are_nothing_to_tell_of() -> None:
    assert slow_links([]) == []
    assert slow_links(ring(4, 8, {(2, 3): 25.0})) == []


def test_of_two_links_the_worse_one_is_named(says: Says) -> None:
    (found,) = slow_links(ring(2, 1, {(1, 2): 19.0}))
    says(found.text, "rank 0", "node-1", "rank 1", "node-2", "19 GB/s", "40")
    assert slow_links(ring(2, 1, {(1, 2): 21.0})) == []


def test_a_network_that_is_too_slow_for_any_training_is_told_once(says: Says) -> None:
    slow = {(1, 2): 0.004, (2, 1): 0.003}
    (found,) = slow_links(ring(2, 8, slow))
    says(found.text, "0.004 GB/s", "NCCL_SOCKET_IFNAME")
    assert not found.ends_the_job


def test_a_host_with_a_bad_adapter_is_in_both_lines(says: Says) -> None:
    first, second = slow_links(ring(4, 8, {(2, 3): 1.2, (3, 4): 0.94}))
    says(first.text, "8-15", "node-2", "16-23", "node-3", "1.2 GB/s")
    assert not first.ends_the_job
    says(second.text, "16-23", "node-3", "24-31", "node-4", "0.94 GB/s")


def test_of_three_hosts_the_bad_one_is_in_both_lines(says: Says) -> None:
    first, second = slow_links(ring(3, 8, {(1, 2): 1.0, (2, 3): 1.0}))
    says(first.text, "0-7", "node-1", "8-15", "node-2", "1 GB/s")
    says(second.text, "8-15", "node-2", "16-23", "node-3", "1 GB/s")


def test_one_bad_adapter_of_a_host_is_named_by_its_rank(says: Says) -> None:
    links = ring(2, 8, {})
    links[11] = Link(links[11].source, links[11].target, 1e9)
    (found,) = slow_links(links)
    says(found.text, "rank 3", "node-1", "rank 11", "node-2", "1 GB/s")


@pytest.mark.parametrize("ranks_per_host", [1, 2, 3])
def test_each_rank_is_reached_from_the_host_before_its_own(
    ranks_per_host: int, capfd: pytest.CaptureFixture[str]
) -> None:
    size = 6
    ranks = [Rank(number, f"node-{number // ranks_per_host}") for number in range(size)]

    def rank() -> None:
        links = time_links(join_world(), ranks)
        assert [link.target for link in links] == ranks
        assert [link.source for link in links] == ranks[-ranks_per_host:] + ranks[:-ranks_per_host]
        assert min(link.bytes_per_second for link in links) > 0
        print(f"{[link.bytes_per_second for link in links]}\n", end="")
        leave_world()

    assert statuses_of(fork_ranks(size, rank)) == [0] * size
    told = capfd.readouterr().out.splitlines()
    assert len(told) == size
    assert len(set(told)) == 1


@pytest.mark.parametrize("hosts", [["one"] * 3, ["one", "one", "other"], ["one", "other", "one"]])
def test_one_host_and_unlike_hosts_have_no_links(hosts: list[str]) -> None:
    def rank() -> None:
        assert time_links(join_world(), [Rank(number, host) for number, host in enumerate(hosts)]) == []
        leave_world()

    assert statuses_of(fork_ranks(3, rank)) == [0, 0, 0]
