"""Work that the ranks of a world share out as they go: each draws its next item when it is done with the last.

Nothing here waits for another rank as collectives do, whose time limit an item of work may exceed by far. Instead every
rank gives signs of life, by which one that has died is found out.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]

from megaslm.engine.distributed import World, on_first_rank, wait_for_all
from megaslm.engine.rendezvous import serve_store
from megaslm.errors import MegaSLMError, PeerFailed

_LOOK_SECONDS = 0.2
_SIGN_SECONDS = 10.0
_MOST_SILENT_SECONDS = 180.0
_FAREWELL_SECONDS = 60.0
_STORE_TIMEOUT = timedelta(minutes=1)


class WorkQueue:
    """Numbers from 0 on, each drawn by one rank, and what the ranks have to tell one another meanwhile.

    Every method but `fail` raises PeerFailed where another rank has failed.
    """

    def __init__(self, world: World) -> None:
        """Called by every rank. The first serves the others, until it leaves `wait_for_all` or `fail`."""
        self._world = world
        served, own_port = serve_store(world.size) if world.is_first else (None, 0)
        port = on_first_rank(lambda: own_port)
        with _first_rank_needed():
            reached = served or TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=_STORE_TIMEOUT)
        self._store: Store = reached
        self._over = threading.Event()
        threading.Thread(target=self._give_signs, daemon=True).start()

    def draw(self) -> int:
        """The next number; no other rank gets it."""
        return self._add("drawn", 1) - 1

    def add_progress(self, amount: int) -> int:
        """Add to what all ranks have done, and give the sum."""
        return self._add("progress", amount)

    def wait_for_all(self, on_progress: Callable[[int], None] = lambda done: None) -> None:
        """Return when every rank has come here, however long that takes; meanwhile tell the progress.

        The first rank looks out for those that have died, and raises MegaSLMError.
        """
        self._add("ready", 1)
        watch = _Watch(self._store, self._world) if self._world.is_first else None
        while self._add("ready", 0) < self._world.size:
            on_progress(self.add_progress(0))
            if watch is not None:
                watch.look()
            time.sleep(_LOOK_SECONDS)
        # The first rank may end its service once the others have asked for the last time.
        self._over.set()
        wait_for_all()

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank fails, so that they end too."""
        self._over.set()
        with suppress(DistError):
            if not isinstance(error, PeerFailed):
                status = error.exit_status if isinstance(error, MegaSLMError) else 1
                self._store.set("failure", f"{status} {error}")
            self._store.add("left", 1)
            deadline = time.monotonic() + _FAREWELL_SECONDS
            while self._world.is_first and self._store.add("left", 0) < self._world.size:
                if time.monotonic() > deadline:
                    break
                time.sleep(_LOOK_SECONDS)

    def _give_signs(self) -> None:
        with suppress(DistError):
            while not self._over.wait(_SIGN_SECONDS):
                self._store.add(_sign_of(self._world.rank), 1)

    def _add(self, counter: str, amount: int) -> int:
        with _first_rank_needed():
            if self._store.check(["failure"]):
                status, _, message = self._store.get("failure").decode().partition(" ")
                raise PeerFailed(message, int(status))
            return int(self._store.add(counter, amount))


class _Watch:
    """The first rank's look at the signs of life of the others."""

    def __init__(self, store: Store, world: World) -> None:
        self._store = store
        self._size = world.size
        self._signs = [0] * world.size
        self._heard_at = [time.monotonic()] * world.size
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """Raises MegaSLMError where a rank has given no sign for too long."""
        now = time.monotonic()
        if now - self._looked_at < _SIGN_SECONDS:
            return
        self._looked_at = now
        for rank in range(1, self._size):
            signs = int(self._store.add(_sign_of(rank), 0))
            if signs != self._signs[rank]:
                self._signs[rank], self._heard_at[rank] = signs, now
            elif now - self._heard_at[rank] > _MOST_SILENT_SECONDS:
                silent = round(now - self._heard_at[rank])
                raise MegaSLMError(f"rank {rank} has given no sign of life for {silent} s: it or its host has died")


def _sign_of(rank: int) -> str:
    return f"alive-{rank}"


@contextmanager
def _first_rank_needed() -> Iterator[None]:
    try:
        yield
    except DistError as error:
        raise MegaSLMError("the first rank is gone, and with it the job; look at what it has said") from error
