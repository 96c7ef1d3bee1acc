"""Where the ranks leave their signs of life: a store that the first rank serves."""

import os
from datetime import timedelta
from typing import Self

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from megaslm.engine.distributed import World, on_first_rank
from megaslm.engine.liveness.life_signs import Sign
from megaslm.engine.liveness.verdict import Verdict
from megaslm.engine.rendezvous import serve_store

_CONNECT_TIMEOUT = timedelta(minutes=5)
# A slow store is waited for, however long: who waits is a thread with nothing else to do, and another one watches it.
_ANSWER_TIMEOUT = timedelta(days=7)
_VERDICT = "verdict"


class SignBoard:
    """One connection to the store, for one thread. Every method raises DistError where the first rank is gone."""

    def __init__(self, store: Store, readable: range) -> None:
        """Reads the signs of the ranks in `readable` only."""
        self._store = store
        self._keys = [_key(rank) for rank in readable]

    @classmethod
    def open(cls, world: World, sign: Sign) -> Self:
        """Called by every rank with its first sign. The first rank will read those of all, the others only its own.

        Raises:
            PeerFailed: the first rank cannot serve the store, and has said why.
        """
        served: list[Store] = []

        def serve() -> int:
            store, port = serve_store(world.size)
            served.append(store)
            # Whoever reads waits for a key that is not there; an empty text is no sign.
            for key in (*map(_key, range(world.size)), _VERDICT):
                store.set(key, "")
            # The first rank's own sign is there before the others can look for it.
            cls(store, range(0)).give(sign)
            return port

        port = on_first_rank(serve)
        if world.is_first:
            (store,) = served
        else:
            store = TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=_CONNECT_TIMEOUT)
        store.set_timeout(_ANSWER_TIMEOUT)
        board = cls(store, range(world.size if world.is_first else 1))
        if not world.is_first:
            board.give(sign)
        return board

    def give(self, sign: Sign) -> None:
        """Leave a sign in place of the rank's former one."""
        self._store.set(_key(sign.rank), sign.encode())

    def publish(self, verdict: Verdict) -> None:
        """Tell all ranks; where there is a verdict already it stands."""
        self._store.compare_set(_VERDICT, "", verdict.encode())

    def look(self) -> tuple[list[Sign], Verdict | None]:
        """The signs of the readable ranks that have given one, in rank order, and the verdict."""
        *signs, verdict = self._store.multi_get([*self._keys, _VERDICT])
        return [Sign.decode(sign) for sign in signs if sign], Verdict.decode(verdict) if verdict else None


def _key(rank: int) -> str:
    return f"sign-{rank}"
