"""Who has come to the meeting, before anything waits for all: who stays away is told of within minutes."""

import json
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from torch.distributed import DistError, DistStoreError, PrefixStore, Store  # type: ignore[attr-defined]

from megaslm.engine.network import loopback_interfaces
from megaslm.engine.rank_names import Rank, name_absent, name_ranks
from megaslm.errors import ConfigError, MegaSLMError, PeerFailed

_OUTCOME, _HEARD = "outcome", "heard"
_REMINDER_SECONDS = 30.0
# In which the others hear of a refusal before the first rank ends, and its store with it.
_FAREWELL_SECONDS = 5.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Arrival:
    """What a rank says of itself when it comes."""

    rank: Rank
    interface: str
    """Over which its connections go."""
    is_on_loopback: bool
    """Whether that reaches nothing but its host."""
    device: str
    """What it computes on: cuda or cpu."""

    @classmethod
    def of_this_rank(cls, rank: int, interface: str, device: str) -> Self:
        """Of this process."""
        return cls(Rank(rank, socket.gethostname()), interface, interface in loopback_interfaces(), device)

    def encode(self) -> str:
        """As `decode` reads it."""
        return json.dumps([self.rank.number, self.rank.host, self.interface, self.is_on_loopback, self.device])

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """The arrival that was encoded."""
        number, host, *rest = json.loads(text)
        return cls(Rank(number, host), *rest)


def call_roll(store: Store, arrival: Arrival, world_size: int, limit: timedelta) -> None:
    """Returns when all ranks have come, and can work together as far as their arrivals tell; called by every rank.

    Raises:
        MegaSLMError: ranks have not come within the limit; the message says which, and who has.
        ConfigError: ranks compute on unlike devices, or cannot reach one another over the interfaces they have chosen.
        PeerFailed: the first rank has raised one of these.
    """
    store = PrefixStore("roll", store)
    store.set(_key(arrival.rank.number), arrival.encode())
    if arrival.rank.number == 0:
        _judge(store, world_size, limit)
    else:
        _hear(store, arrival, limit)


def _judge(store: Store, world_size: int, limit: timedelta) -> None:
    missing = _wait_for_all(store, world_size, limit)
    came = [Arrival.decode(store.get(_key(rank))) for rank in range(world_size) if rank not in missing]
    refusal = _absence(missing, came, limit) if missing else refusal_of(came)
    store.set(_OUTCOME, json.dumps(None if refusal is None else [str(refusal), refusal.exit_status]))
    if refusal is not None:
        began = time.monotonic()
        while store.add(_HEARD, 0) < len(came) - 1 and time.monotonic() - began < _FAREWELL_SECONDS:
            time.sleep(_LOOK_SECONDS)
        raise refusal


def _hear(store: Store, arrival: Arrival, limit: timedelta) -> None:
    try:
        # The first rank may have come a moment later.
        store.wait([_OUTCOME], limit + timedelta(seconds=_REMINDER_SECONDS))
        outcome = json.loads(store.get(_OUTCOME))
    except DistError as error:
        raise MegaSLMError(
            f"{_names([arrival])} hears nothing of the first rank, which should have told by now whether all are here: "
            f"{error}"
        ) from error
    if outcome is not None:
        with suppress(DistError):  # The first rank waits for a few seconds only.
            store.add(_HEARD, 1)
        raise PeerFailed(*outcome)


def _wait_for_all(store: Store, world_size: int, limit: timedelta) -> list[int]:
    """The ranks that have not come within the limit."""
    keys, began = [_key(rank) for rank in range(world_size)], time.monotonic()
    while True:
        left = limit.total_seconds() - (time.monotonic() - began)
        try:
            store.wait(keys, timedelta(seconds=max(0.01, min(left, _REMINDER_SECONDS))))
            return []
        except DistStoreError:
            missing = [rank for rank in range(world_size) if not store.check([_key(rank)])]
        if missing and left <= _REMINDER_SECONDS:
            return missing
        if missing:
            absent = name_absent(missing, world_size)
            reminder = f"rank 0 waits for {absent}, for {left - _REMINDER_SECONDS:.0f} s more"
            print(reminder, file=sys.stderr, flush=True)


def _absence(missing: Sequence[int], came: Sequence[Arrival], limit: timedelta) -> MegaSLMError:
    world_size = len(came) + len(missing)
    return MegaSLMError(
        f"{len(came)} of {world_size} ranks have come within {limit.total_seconds():.0f} s; missing: "
        f"{name_absent(missing, world_size)}; here: {_names(came)}. Look whether the processes of the others run, "
        "and reach this host"
    )


def refusal_of(arrivals: Sequence[Arrival]) -> ConfigError | None:
    """Why these ranks cannot work together; None where nothing speaks against it."""
    devices = {arrival.device for arrival in arrivals}
    if len(devices) > 1:
        without = [arrival for arrival in arrivals if arrival.device == "cpu"]
        return ConfigError(
            f"{len(without)} of {len(arrivals)} ranks see no GPU: {_names(without)}; look at the driver there, and "
            "at CUDA_VISIBLE_DEVICES"
        )
    enclosed = [arrival for arrival in arrivals if arrival.is_on_loopback]
    if enclosed and len({arrival.rank.host for arrival in arrivals}) > 1:
        return ConfigError(
            f"connections of {_names(enclosed)} would go over {enclosed[0].interface}, which other hosts do not "
            "reach; set MASTER_ADDR to an address of the first host in place of its name, or GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME to its interface"
        )
    return None


def _names(arrivals: Iterable[Arrival]) -> str:
    return name_ranks(arrival.rank for arrival in arrivals)


def _key(rank: int) -> str:
    return f"rank-{rank}"
