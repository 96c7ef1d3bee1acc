"""What a host has too little of, on either side of each limit."""

from typing import Any

import pytest

from megaslm.health.host_facts import Disk
from megaslm.health.preflight import shortages
from tests.messages import Says
from tests.planted_facts import GIB, planted

MIB = 1 << 20


def disk(free_bytes: int) -> Disk:
    return Disk("/some/folder", free_bytes)


ENOUGH: list[dict[str, Any]] = [
    {"checkpoints": disk(24 * GIB)},
    # Two of four ranks are on each host.
    {"memory_bytes": 6 * GIB},
    {"cache": disk(GIB)},
    {"shared_memory": disk(32 * MIB)},
    {"shared_memory": disk(0), "gpus": []},
    {"checkpoints": None, "cache": None, "shared_memory": None},
    {"checkpoint_bytes": 0, "checkpoints": disk(0), "memory_bytes": 0},
]
TOO_LITTLE: list[tuple[dict[str, Any], tuple[str, ...], bool]] = [
    ({"checkpoints": disk(12 * GIB - MIB)}, ("/some/folder", "12.0 GiB"), True),
    ({"checkpoints": disk(24 * GIB - 1)}, ("/some/folder", "24.0 GiB", "12.0 GiB"), False),
    ({"memory_bytes": 5 * GIB}, ("5.0 GiB", "6.0 GiB"), True),
    ({"cache": disk(300 * MIB)}, ("/some/folder", "300.0 MiB"), False),
    ({"shared_memory": disk(31 * MIB)}, ("/some/folder", "31.0 MiB", "32.0 MiB"), False),
]


@pytest.mark.parametrize("fields", ENOUGH)
def test_what_suffices_is_not_told_of(fields: dict[str, Any]) -> None:
    assert shortages(planted(4, **fields)) == []


@pytest.mark.parametrize(("fields", "named", "ends_the_job"), TOO_LITTLE)
def test_what_is_lacking_is_told_with_its_host(
    fields: dict[str, Any], named: tuple[str, ...], ends_the_job: bool, says: Says
) -> None:
    (found,) = shortages(planted(4, {2: fields, 3: fields}))
    says(found.text, "node-1", *named)
    assert found.ends_the_job is ends_the_job


def test_a_rank_alone_needs_room_too(says: Says) -> None:
    (found,) = shortages(planted(1, checkpoints=disk(0)))
    says(found.text, "/some/folder", "node-0", "12.0 GiB")


def test_one_rank_that_can_tell_the_size_of_a_checkpoint_is_enough() -> None:
    blind: dict[str, Any] = {"checkpoint_bytes": 0}
    assert len(shortages(planted(4, {0: blind, 1: blind, 2: blind}, memory_bytes=5 * GIB))) == 2
