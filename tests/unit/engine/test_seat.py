import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from megaslm.engine.seat import ALONE, Seat, seat_in
from megaslm.errors import LaunchError
from tests.messages import Says

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-1",
    "MASTER_PORT": "29500",
}
SEAT = Seat(rank=3, world_size=4, local_rank=1, host_ranks=2)


def whole_but(*without: str, **changes: str) -> dict[str, str]:
    return {name: value for name, value in (WHOLE | changes).items() if name not in without}


@pytest.mark.parametrize(
    ("environment", "seat"),
    [
        ({}, ALONE),
        # What people export, and what Kubernetes sets for a service called master.
        ({"MASTER_ADDR": "node-1", "MASTER_PORT": "tcp://10.96.0.7:29500"}, ALONE),
        # Slurm's and MPI's own variables start nothing.
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "16", "OMPI_COMM_WORLD_RANK": "3", "PMI_SIZE": "4"}, ALONE),
        # Left by torchrun, beside its ranks'.
        ({"NODE_RANK": "1", "GROUP_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"}, ALONE),
        (WHOLE, SEAT),
        (whole_but("LOCAL_WORLD_SIZE", LOCAL_SIZE="2"), SEAT),
        (whole_but(LOCAL_SIZE="2"), SEAT),
        # The ranks count themselves.
        (whole_but("LOCAL_WORLD_SIZE"), replace(SEAT, host_ranks=None)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, ALONE),
        # One rank meets nobody.
        (whole_but(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_PORT="tcp://"), ALONE),
    ],
)
def test_a_whole_seat_is_taken(environment: dict[str, str], seat: Seat) -> None:
    assert seat_in(environment) == seat


@pytest.mark.parametrize(
    ("seat", "may"),
    [(ALONE, False), (SEAT, True), (replace(SEAT, host_ranks=4), False), (replace(SEAT, host_ranks=None), True)],
)
def test_ranks_may_be_on_several_hosts_unless_all_are_on_this_one(seat: Seat, may: bool) -> None:
    assert seat.may_span_hosts is may


@pytest.mark.parametrize("name", sorted(WHOLE.keys() - {"LOCAL_WORLD_SIZE"}))
def test_what_is_missing_is_named_with_what_is_set(name: str, says: Says) -> None:
    with pytest.raises(LaunchError) as refused:
        seat_in(whole_but(name))
    others = WHOLE.keys() - {name}
    says(refused, name, *(f"{other} = {WHOLE[other]!r}" for other in others))
    assert f" {name} = " not in str(refused.value)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_one_that_is_left_over_alone_is_refused(name: str) -> None:
    with pytest.raises(LaunchError, match=f"`unset {name}`"):
        seat_in({name: "0", "PATH": "/bin"})


@pytest.mark.parametrize("name", sorted({*WHOLE, "LOCAL_SIZE"} - {"MASTER_ADDR"}))
@example(" ")
@example("-1")
@example("1.5")
@example("0x1")
@example("1_0")
@example("٣")
@example("7\n")
@example("9" * 5000)
@example("a" * 5000)
@given(some.text().filter(lambda value: not re.fullmatch(r"[0-9]{1,9}", value)))
def test_a_value_that_is_no_number_is_shown(name: str, value: str) -> None:
    with pytest.raises(LaunchError) as refused:
        seat_in(whole_but(**{name: value}))
    assert f"{name} = {value[:40]!r}" in str(refused.value)
    assert len(str(refused.value)) < 1000


@given(some.text())
def test_the_address_to_meet_at_is_any_text_but_blanks(value: str) -> None:
    if value.strip():
        assert seat_in(whole_but(MASTER_ADDR=value)) == SEAT
    else:
        with pytest.raises(LaunchError, match=re.escape(f"MASTER_ADDR = {value[:40]!r}")):
            seat_in(whole_but(MASTER_ADDR=value))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RANK": "1.5"}, "RANK = '1.5'"),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR = ' '"),
        ({"RANK": "4"}, "RANK"),
        ({"WORLD_SIZE": "0"}, "RANK"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK"),
        ({"LOCAL_SIZE": "1"}, "LOCAL_RANK"),
        ({"LOCAL_SIZE": "3"}, "LOCAL_WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "8"}, "WORLD_SIZE"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT"),
        # Of a job of one rank.
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "WORLD_SIZE"),
    ],
)
def test_ranks_that_cannot_be_are_refused(changes: dict[str, str], named: str, says: Says) -> None:
    with pytest.raises(LaunchError) as refused:
        seat_in(whole_but(**changes))
    says(refused, named)
