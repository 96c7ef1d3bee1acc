"""Every fact in which ranks ought to be alike, planted unlike; who is named, with which values."""

from typing import Any

import pytest

from megaslm.engine.rank_names import Rank, name_ranks
from megaslm.health.clocks import ClockReading
from megaslm.health.findings import disagreements
from megaslm.health.host_facts import LIBRARIES, Code, code_trait
from megaslm.health.preflight import differences
from tests.messages import Says
from tests.planted_facts import planted

Case = tuple[dict[str, Any], str, str]
MUST_AGREE: list[Case] = [
    ({"settings": {"train.lr": "0.02", "seed": "0"}}, "0.02", "0.01"),
    ({"settings": {"train.lr": "0.01"}}, "seed", "0"),
    ({"settings": {"train.lr": "0.01", "seed": "0", "data.domains": "web"}}, "web", ""),
    ({"files": {"manifest.json of data.train": "3f2a"}}, "3f2a", "9c1b"),
    *(({"versions": dict.fromkeys(LIBRARIES, "1.0") | {library: "2.0"}}, "2.0", "1.0") for library in LIBRARIES),
]
MAY_DIFFER: list[Case] = [
    ({"gpus": ["NVIDIA H100"]}, "1", "2"),
    ({"gpus": []}, "0", "2"),
    ({"python": "3.11.9"}, "3.11.9", "3.12.4"),
    ({"gpus": ["NVIDIA H200"] * 2}, "NVIDIA H200", "NVIDIA H100"),
    ({"driver": "535.1"}, "535.1", "550.54.15"),
    ({"clock": ClockReading(1_700_000_012.3, 0.01)}, "+12.3 s", "+0.0 s"),
    ({"clock": ClockReading(1_699_999_990.0, 0.01)}, "+0.0 s", "+10.0 s"),
]


def on(host: str, *numbers: int) -> str:
    return name_ranks([Rank(number, host) for number in numbers])


def test_ranks_that_are_alike_are_found_to_be() -> None:
    assert differences(planted(4)) == []
    assert differences(planted(1)) == []


@pytest.mark.parametrize(
    ("fields", "odd", "usual", "ends_the_job"),
    [(*case, True) for case in MUST_AGREE] + [(*case, False) for case in MAY_DIFFER],
)
def test_the_odd_rank_is_named(fields: dict[str, Any], odd: str, usual: str, ends_the_job: bool, says: Says) -> None:
    (found,) = differences(planted(4, {3: fields}))
    says(found.text, on("node-1", 3), odd, usual)
    assert found.ends_the_job is ends_the_job
    (first,) = differences(planted(4, {0: fields}))
    assert first.text == found.text.replace(on("node-1", 3), on("node-0", 0))


@pytest.mark.parametrize(("fields", "odd", "usual"), MUST_AGREE + MAY_DIFFER)
def test_without_a_majority_all_sides_are_named(fields: dict[str, Any], odd: str, usual: str) -> None:
    (found,) = differences(planted(4, {2: fields, 3: fields}))
    assert all(fact in found.text for fact in (odd, on("node-1", 2, 3), usual, on("node-0", 0, 1)))
    (found,) = differences(planted(2, {1: fields}))
    assert all(fact in found.text for fact in (odd, on("node-0", 1), usual, on("node-0", 0)))


def test_two_sides_are_told_of_alike(says: Says) -> None:
    (found,) = differences(planted(4, {2: {"driver": "535.1"}, 3: {"driver": "535.1"}}))
    says(found.text, "535.1", "550.54.15")


def test_every_other_value_than_the_majoritys_has_its_line(says: Says) -> None:
    first, second = differences(planted(6, {1: {"driver": "1"}, 4: {"driver": "2"}}))
    says(first.text, on("node-0", 1))
    says(second.text, on("node-2", 4))


def test_several_differences_are_all_found() -> None:
    found = differences(planted(4, {1: {"python": "3.11.9", "settings": {"train.lr": "0.02", "seed": "1"}}}))
    named = zip(found, ("train.lr", "seed", "Python"), strict=True)
    assert all(finding.text.startswith(on("node-0", 1)) and name in finding.text for finding, name in named)


def test_runs_that_have_nothing_in_common_are_told_in_few_lines(says: Says) -> None:
    other = {f"section.setting_{number}": "1" for number in range(100)}
    found = differences(planted(4, {1: {"settings": other}}))
    assert len(found) == 9
    says(found[-1].text, "94")


def test_clocks_are_as_far_apart_as_the_exchange_can_tell() -> None:
    """Eight seconds are none where the ranks came to read their clocks within five."""
    late = {1: {"clock": ClockReading(1_700_000_008.0, 5.0)}}
    assert differences(planted(4, late)) == []
    assert len(differences(planted(4, {1: {"clock": ClockReading(1_700_000_008.0, 0.5)}}))) == 1


def test_other_code_is_named_with_its_rank(says: Says) -> None:
    codes = [Code(Rank(rank, f"node-{rank}"), "0.1.0", ("3f2a" if rank == 3 else "9c1b") * 16) for rank in range(4)]
    (found,) = disagreements(code_trait(codes), [code.rank for code in codes])
    says(found.text, on("node-3", 3), "0.1.0", "3f2a3f2a3f2a", "9c1b9c1b9c1b")
    assert found.ends_the_job
