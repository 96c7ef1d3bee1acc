"""Work that the ranks of a world share out as they go: each draws its next item when it is done with the last.

Nothing here waits for another rank as collectives do, whose time limit an item of work may exceed by far.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from megaslm.engine.distributed import World, on_first_rank, wait_for_all
from megaslm.errors import MegaSLMError, PeerFailed

_LOOK_SECONDS = 0.2
_FAREWELL_SECONDS = 60.0
_STORE_TIMEOUT = timedelta(minutes=5)


class WorkQueue:
    """Numbers from 0 on, each drawn by one rank, and what the ranks have to tell one another meanwhile.

    Every method but `fail` raises PeerFailed where another rank has failed.
    """

    def __init__(self, world: World) -> None:
        """Called by every rank. The first serves the others, until it leaves `wait_for_all` or `fail`."""
        self._world = world
        host = os.environ["MASTER_ADDR"]
        served = TCPStore(host, 0, is_master=True, wait_for_workers=False) if world.is_first else None
        port = on_first_rank(lambda: 0 if served is None else served.port)
        self._store = served or TCPStore(host, port, is_master=False, timeout=_STORE_TIMEOUT)

    def draw(self) -> int:
        """The next number; no other rank gets it."""
        return self._add("drawn", 1) - 1

    def add_progress(self, amount: int) -> int:
        """Add to what all ranks have done, and give the sum."""
        return self._add("progress", amount)

    def wait_for_all(self, on_progress: Callable[[int], None] = lambda done: None) -> None:
        """Return when every rank has come here, however long that takes; meanwhile tell the progress."""
        self._add("ready", 1)
        while self._add("ready", 0) < self._world.size:
            on_progress(self.add_progress(0))
            time.sleep(_LOOK_SECONDS)
        # The first rank may end its service once the others have asked for the last time.
        wait_for_all()

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank fails, so that they end too."""
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

    def _add(self, counter: str, amount: int) -> int:
        with _peers_needed():
            if self._store.check(["failure"]):
                status, _, message = self._store.get("failure").decode().partition(" ")
                raise PeerFailed(message, int(status))
            return int(self._store.add(counter, amount))


@contextmanager
def _peers_needed() -> Iterator[None]:
    try:
        yield
    except DistError as error:
        raise PeerFailed(f"the first rank is gone: {error}", MegaSLMError.exit_status) from error
