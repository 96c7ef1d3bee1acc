"""Every fact in which ranks ought to be alike, planted unlike; who is named, with which values."""

from typing import Any

import pytest

from megaslm.engine.preflight.clocks import ClockReading
from megaslm.engine.preflight.code import Code, code_trait
from megaslm.engine.preflight.differences import differences
from megaslm.engine.preflight.facts import LIBRARIES
from megaslm.engine.preflight.findings import Finding, disagreements
from megaslm.engine.rank_names import Rank
from tests.planted_facts import planted

MUST_AGREE: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"train.lr": "0.02", "seed": "0"}}, "train.lr is 0.02, that of 3 other ranks 0.01"),
    ({"settings": {"train.lr": "0.01"}}, "seed is not set, that of 3 other ranks 0"),
    (
        {"settings": {"train.lr": "0.01", "seed": "0", "data.domains": "web"}},
        "data.domains is web, that of 3 other ranks not set",
    ),
    (
        {"files": {"manifest.json of data.train": "3f2a"}},
        "manifest.json of data.train is 3f2a, that of 3 other ranks 9c1b",
    ),
    *(
        (
            {"versions": dict.fromkeys(LIBRARIES, "1.0") | {library: "2.0"}},
            f"the version of {library} is 2.0, that of 3 other ranks 1.0",
        )
        for library in LIBRARIES
    ),
]
MAY_DIFFER: list[tuple[dict[str, Any], str]] = [
    ({"gpus": ["NVIDIA H100"]}, "the number of GPUs is 1, that of 3 other ranks 2"),
    ({"gpus": []}, "the number of GPUs is 0, that of 3 other ranks 2"),
    ({"python": "3.11.9"}, "the version of Python is 3.11.9, that of 3 other ranks 3.12.4"),
    (
        {"gpus": ["NVIDIA H200"] * 2},
        "the model of GPU is NVIDIA H200, that of 3 other ranks NVIDIA H100",
    ),
    ({"driver": "535.1"}, "the GPUs' driver is 535.1, that of 3 other ranks 550.54.15"),
    (
        {"clock": ClockReading(1_700_000_012.3, 0.01)},
        "the host's clock is at +12.3 s, that of 3 other ranks at +0.0 s",
    ),
    (
        {"clock": ClockReading(1_699_999_990.0, 0.01)},
        "the host's clock is at +0.0 s, that of 3 other ranks at +10.0 s",
    ),
]


def test_ranks_that_are_alike_are_found_to_be() -> None:
    assert differences(planted(4)) == []
    assert differences(planted(1)) == []


@pytest.mark.parametrize("odd", [0, 3])
@pytest.mark.parametrize(
    ("fields", "said", "ends_the_job"),
    [(*case, True) for case in MUST_AGREE] + [(*case, False) for case in MAY_DIFFER],
)
def test_the_odd_rank_is_named(odd: int, fields: dict[str, Any], said: str, ends_the_job: bool) -> None:
    (found,) = differences(planted(4, {odd: fields}))
    assert found.text.startswith(f"rank {odd} on node-{odd // 2}: {said}: ")
    assert found.ends_the_job is ends_the_job


@pytest.mark.parametrize(("fields", "said"), MUST_AGREE + MAY_DIFFER)
def test_without_a_majority_all_sides_are_named(fields: dict[str, Any], said: str) -> None:
    name, _, values = said.partition(" is ")
    odd, usual = values.split(", that of 3 other ranks ")
    (found,) = differences(planted(4, {2: fields, 3: fields}))
    assert found.text.startswith(f"{name} is {usual} for ranks 0-1 on node-0, {odd} for ranks 2-3 on node-1: ")
    (found,) = differences(planted(2, {1: fields}))
    assert found.text.startswith(f"{name} is {usual} for rank 0 on node-0, {odd} for rank 1 on node-0: ")


def test_every_other_value_than_the_majoritys_has_its_line() -> None:
    found = differences(planted(6, {1: {"driver": "1"}, 4: {"driver": "2"}}))
    assert [finding.text.partition(": install")[0] for finding in found] == [
        "rank 1 on node-0: the GPUs' driver is 1, that of 4 other ranks 550.54.15",
        "rank 4 on node-2: the GPUs' driver is 2, that of 4 other ranks 550.54.15",
    ]


def test_several_differences_are_all_found() -> None:
    found = differences(planted(4, {1: {"python": "3.11.9", "settings": {"train.lr": "0.02", "seed": "1"}}}))
    assert [finding.text.split(" is ")[0] for finding in found] == [
        "rank 1 on node-0: train.lr",
        "rank 1 on node-0: seed",
        "rank 1 on node-0: the version of Python",
    ]


def test_runs_that_have_nothing_in_common_are_told_in_few_lines() -> None:
    other = {f"section.setting_{number}": "1" for number in range(100)}
    found = differences(planted(4, {1: {"settings": other}}))
    assert len(found) == 9
    assert found[-1] == Finding("and 94 more differences between settings")


def test_clocks_are_as_far_apart_as_the_exchange_can_tell() -> None:
    """Eight seconds are none where the ranks came to read their clocks within five."""
    late = {1: {"clock": ClockReading(1_700_000_008.0, 5.0)}}
    assert differences(planted(4, late)) == []
    assert len(differences(planted(4, {1: {"clock": ClockReading(1_700_000_008.0, 0.5)}}))) == 1


def test_other_code_is_named_with_its_rank() -> None:
    codes = [Code(Rank(rank, f"node-{rank}"), "0.1.0", ("3f2a" if rank == 3 else "9c1b") * 16) for rank in range(4)]
    (found,) = disagreements(code_trait(codes), [code.rank for code in codes])
    assert found.text == (
        "rank 3 on node-3: megaslm's code is 0.1.0 (3f2a3f2a3f2a), that of 3 other ranks 0.1.0 (9c1b9c1b9c1b): "
        "bring the copies on all hosts to one state"
    )
    assert found.ends_the_job
