"""Which of a job's ranks this process is, as launchers tell it by the environment."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megaslm.errors import LaunchError

# torchrun and DeepSpeed's launcher call the number of ranks of a host by different names.
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
_TELL_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", *_LOCAL_SIZES)
# By themselves these make no rank: people export them, and Kubernetes sets a MASTER_PORT for a service called master.
_TELL_MEETING = ("MASTER_ADDR", "MASTER_PORT")
_LAST_PORT = 65535
_LONGEST_SHOWN = 40


@dataclass(frozen=True)
class Seat:
    """The place of one process among those of its job."""

    rank: int
    world_size: int
    local_rank: int
    """Among the ranks of its host."""


ALONE = Seat(rank=0, world_size=1, local_rank=0)
"""That of a process that no launcher has started."""


def seat_in(environment: Mapping[str, str]) -> Seat:
    """The seat that the environment tells of.

    Raises:
        LaunchError: it tells of a rank in part, or of one that cannot be.
    """
    told = {name: environment[name] for name in (*_TELL_RANK, *_TELL_MEETING) if name in environment}
    if not told.keys() & set(_TELL_RANK):
        return ALONE
    if told.get("WORLD_SIZE") == "1":
        # One rank meets nobody.
        told = {name: value for name, value in told.items() if name in _TELL_RANK}
    numbers = {name: int(value) for name, value in told.items() if re.fullmatch(r"[0-9]{1,9}", value)}
    if faults := [*_missing(told), *_impossible(told, numbers)]:
        shown = ", ".join(f"{name} = {value[:_LONGEST_SHOWN]!r}" for name, value in told.items())
        raise LaunchError(
            f"the environment makes this process a rank of a job, but no whole one: {shown}; {'; '.join(faults)}. If "
            f"another job has left these variables, `unset {' '.join(told)}` and start again; several ranks are "
            "started by `megaslm launch`, torchrun or deepspeed, which set all that is needed"
        )
    return Seat(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"])


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
