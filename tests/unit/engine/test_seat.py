import pytest

from megaslm.engine.seat import ALONE, Seat, seat_in
from megaslm.errors import LaunchError

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-1",
    "MASTER_PORT": "29500",
}
SEAT = Seat(rank=3, world_size=4, local_rank=1)


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
        (whole_but("LOCAL_WORLD_SIZE"), SEAT),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, ALONE),
        # One rank meets nobody.
        (whole_but(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_PORT="tcp://"), ALONE),
    ],
)
def test_a_whole_seat_is_taken(environment: dict[str, str], seat: Seat) -> None:
    assert seat_in(environment) == seat


@pytest.mark.parametrize("name", sorted(WHOLE.keys() - {"LOCAL_WORLD_SIZE"}))
def test_what_is_missing_is_named_with_what_is_set(name: str) -> None:
    with pytest.raises(LaunchError) as refused:
        seat_in(whole_but(name))
    said = str(refused.value)
    missing = said[said.index("missing: ") : said.index(". If")]
    assert name in missing
    others = WHOLE.keys() - {name}
    assert not any(f" {other}" in missing for other in others)
    assert all(f"{other} = {WHOLE[other]!r}" in said for other in others)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_one_that_is_left_over_alone_is_refused(name: str) -> None:
    with pytest.raises(LaunchError, match=f"`unset {name}`"):
        seat_in({name: "0", "PATH": "/bin"})


@pytest.mark.parametrize("name", [*WHOLE, "LOCAL_SIZE"])
@pytest.mark.parametrize("value", ["", " ", "-1", "1.5", "0x1", "1_0", "٣", "9" * 5000, "a" * 5000])
def test_a_value_that_is_no_number_is_shown(name: str, value: str) -> None:
    if name == "MASTER_ADDR" and value.strip():
        assert seat_in(whole_but(MASTER_ADDR=value)) == SEAT
        return
    with pytest.raises(LaunchError) as refused:
        seat_in(whole_but(**{name: value}))
    assert f"{name} = {value[:40]!r}" in str(refused.value)
    assert f"{name} must be" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RANK": "4"}, "RANK must be below WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "RANK must be below WORLD_SIZE"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK must be below LOCAL_WORLD_SIZE"),
        ({"LOCAL_SIZE": "1"}, "LOCAL_RANK must be below LOCAL_SIZE"),
        ({"LOCAL_SIZE": "3"}, "LOCAL_WORLD_SIZE and LOCAL_SIZE must be equal"),
        ({"LOCAL_WORLD_SIZE": "8"}, "WORLD_SIZE must be at least"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT must be from 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT must be from 1 to 65535"),
        # Of a job of one rank.
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK must be below WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "WORLD_SIZE must be at least"),
    ],
)
def test_ranks_that_cannot_be_are_refused(changes: dict[str, str], named: str) -> None:
    with pytest.raises(LaunchError, match=named):
        seat_in(whole_but(**changes))
