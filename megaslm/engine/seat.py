"""Which of a job's ranks this process is, by the environment variables of the launcher."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megaslm.errors import LaunchError

# torchrun and DeepSpeed's launcher have different names for the number of ranks of a host.
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
_TELL_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", *_LOCAL_SIZES)
# These alone do not make a rank: users export them, and Kubernetes sets MASTER_PORT for a service called master.
_TELL_MEETING = ("MASTER_ADDR", "MASTER_PORT")
_LAST_PORT = 65535
_LONGEST_SHOWN = 40


@dataclass(frozen=True)
class Seat:
    """The rank of one process in its job."""

    rank: int
    world_size: int
    local_rank: int
    """Its index among the ranks of its host."""
    host_ranks: int | None = None
    """The number of ranks of its host; None where it is not told."""

    @property
    def may_span_hosts(self) -> bool:
        """Whether other ranks may be on other hosts."""
        return self.world_size not in (1, self.host_ranks)


ALONE = Seat(rank=0, world_size=1, local_rank=0)
"""The seat of a process without a launcher."""


def seat_in(environment: Mapping[str, str]) -> Seat:
    """The seat that the environment describes.

    Raises:
        LaunchError: the environment describes a rank only in part, or an impossible one.
    """
    told = {name: environment[name] for name in (*_TELL_RANK, *_TELL_MEETING) if name in environment}
    if not told.keys() & set(_TELL_RANK):
        return ALONE
    if told.get("WORLD_SIZE") == "1":
        # A single rank meets no other.
        told = {name: value for name, value in told.items() if name in _TELL_RANK}
    numbers = {name: int(value) for name, value in told.items() if re.fullmatch(r"[0-9]{1,9}", value)}
    if faults := [*_missing(told), *_impossible(told, numbers)]:
        shown = ", ".join(f"{name} = {value[:_LONGEST_SHOWN]!r}" for name, value in told.items())
        raise LaunchError(
            f"the environment describes a rank of a job, but incompletely or wrongly: {shown}; {'; '.join(faults)}. If "
            f"another job has left these variables, `unset {' '.join(told)}` and start again; several ranks are "
            "started by `megaslm launch`, torchrun or deepspeed, which set all of them"
        )
    if numbers["WORLD_SIZE"] == 1:
        return ALONE
    host_ranks = next((numbers[name] for name in _LOCAL_SIZES if name in numbers), None)
    return Seat(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"], host_ranks)


def _missing(told: Mapping[str, str]) -> Iterator[str]:
    needed = ["RANK", "WORLD_SIZE", "LOCAL_RANK"]
    if told.get("WORLD_SIZE") != "1":
        needed += _TELL_MEETING
    if missing := [name for name in needed if name not in told]:
        yield f"missing: {', '.join(missing)}"


def _impossible(told: Mapping[str, str], numbers: Mapping[str, int]) -> Iterator[str]:
    for name, value in told.items():
        if name != "MASTER_ADDR" and name not in numbers:
            yield f"{name} must be a whole number from 0 on"
        if not value.strip() and name == "MASTER_ADDR":
            yield "MASTER_ADDR must be the address of the first rank's host"
    if not 0 < numbers.get("MASTER_PORT", 1) <= _LAST_PORT:
        yield f"MASTER_PORT must be from 1 to {_LAST_PORT}"
    for number, count in (("RANK", "WORLD_SIZE"), *(("LOCAL_RANK", count) for count in ("WORLD_SIZE", *_LOCAL_SIZES))):
        if number in numbers and count in numbers and numbers[number] >= numbers[count]:
            yield f"{number} must be below {count}"
    local_sizes = {numbers[name] for name in _LOCAL_SIZES if name in numbers}
    if len(local_sizes) > 1:
        yield f"{' and '.join(_LOCAL_SIZES)} must be equal"
    if "WORLD_SIZE" in numbers and max(local_sizes, default=0) > numbers["WORLD_SIZE"]:
        yield "WORLD_SIZE must be at least the number of ranks of a host"
