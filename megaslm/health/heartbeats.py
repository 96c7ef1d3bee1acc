"""The thread that sends a rank's heartbeats and receives those of others, through a store on the first rank.

Each rank measures time by its own clock. Clocks of several hosts are never compared.
"""

import os
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Self

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]

from megaslm.engine.distributed import World, on_first_rank
from megaslm.engine.heartbeat import last_position
from megaslm.engine.rendezvous import serve_store
from megaslm.health.processes import Process
from megaslm.health.stacks import MainThread
from megaslm.health.verdict import Heartbeat, Verdict

_CONNECT_TIMEOUT = timedelta(minutes=5)
# The thread waits for a slow store without a limit: it has no other work, and another thread watches it.
_ANSWER_TIMEOUT = timedelta(days=7)
_VERDICT = "verdict"
_LONGEST_TICK_SECONDS = 1.0
_BEAT_SECONDS = 0.5
_HURRIED_BEAT_SECONDS = 0.1


class HeartbeatStore:
    """One connection to the store, for one thread. Every method raises DistError where the first rank is gone."""

    def __init__(self, store: Store, readable: range) -> None:
        """Reads only the beats of the ranks in `readable`."""
        self._store = store
        self._keys = [_key(rank) for rank in readable]

    @classmethod
    def open(cls, world: World, beat: Heartbeat) -> Self:
        """Called by every rank with its first beat. The first rank reads the beats of all, the others only the first's.

        Raises:
            PeerFailed: the first rank cannot serve the store, and has reported why.
        """
        served: list[Store] = []

        def serve() -> int:
            store, port = serve_store(world.size)
            served.append(store)
            # A read of a missing key blocks, so every key begins with an empty text, which is not a beat.
            for key in (*map(_key, range(world.size)), _VERDICT):
                store.set(key, "")
            # The first rank's beat must be in the store before the others look for it.
            cls(store, range(0)).give(beat)
            return port

        port = on_first_rank(serve)
        if world.is_first:
            (store,) = served
        else:
            store = TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=_CONNECT_TIMEOUT)
        store.set_timeout(_ANSWER_TIMEOUT)
        board = cls(store, range(world.size if world.is_first else 1))
        if not world.is_first:
            board.give(beat)
        return board

    def give(self, beat: Heartbeat) -> None:
        """Replace the rank's former beat."""
        self._store.set(_key(beat.rank), beat.encode())

    def publish(self, verdict: Verdict) -> None:
        """Send a verdict to all ranks, unless there is one already."""
        self._store.compare_set(_VERDICT, "", verdict.encode())

    def look(self) -> tuple[list[Heartbeat], Verdict | None]:
        """The beats of the readable ranks that have sent one, in rank order, and the verdict."""
        *beats, verdict = self._store.multi_get([*self._keys, _VERDICT])
        return [Heartbeat.decode(beat) for beat in beats if beat], Verdict.decode(verdict) if verdict else None


def _key(rank: int) -> str:
    return f"beat-{rank}"


class AwakeClock:
    """Counts the seconds in which this process could run.

    A scheduler may suspend a whole job. Then no rank was silent, and none has hung.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ticked_at = time.monotonic()

    def tick(self) -> float:
        """The seconds so far. Must be called several times a second."""
        now = time.monotonic()
        self._seconds += min(now - self._ticked_at, _LONGEST_TICK_SECONDS)
        self._ticked_at = now
        return self._seconds


class HeartbeatTracker:
    """The ranks with a heartbeat so far. A rank that has said goodbye is no longer expected."""

    def __init__(self) -> None:
        self._beats: dict[int, Heartbeat] = {}
        self._heard_at: dict[int, float] = {}
        self._moved_at = 0.0

    def hear(self, beats: Iterable[Heartbeat], now: float) -> None:
        """Record the newest beat of each rank; `now` is in seconds of the listener's clock."""
        for beat in beats:
            former = self._beats.get(beat.rank)
            if former is not None and former.given_at == beat.given_at:
                continue
            if former is None or former.position.since != beat.position.since or beat.is_last:
                self._moved_at = now
            self._beats[beat.rank] = beat
            self._heard_at[beat.rank] = now

    @property
    def present(self) -> list[Heartbeat]:
        """The last beat of every rank that is expected to send more, in rank order."""
        return [beat for _, beat in sorted(self._beats.items()) if not beat.is_last]

    def silent(self, now: float, limit_seconds: float) -> list[tuple[Heartbeat, float]]:
        """The ranks without a beat for longer than the limit, each with its seconds of silence."""
        waited = ((beat, now - self._heard_at[beat.rank]) for beat in self.present)
        return [(beat, seconds) for beat, seconds in waited if seconds > limit_seconds]

    def seconds_at_a_standstill(self, now: float) -> float:
        """Seconds since any rank has changed its position."""
        return now - self._moved_at if self.present else 0.0


class HeartbeatThread:
    """Sends heartbeats until this rank has left. Only this thread uses the connection, which may block for long."""

    def __init__(self, world: World, *, stuck_seconds: float) -> None:
        """Called by every rank. Once it has not moved for `stuck_seconds`, it reports whether it waits for others."""
        self._world = world
        self._stuck_seconds = stuck_seconds
        self._process = Process.own()
        self._main_thread = MainThread(world.device)
        self._to_publish: Verdict | None = None
        self._leaving = threading.Event()
        self._over = threading.Event()
        self._hurry = threading.Event()
        self.heard: list[Heartbeat] = []
        """The newest beats: on the first rank those of all ranks, on the others the first rank's."""
        self.dead: list[Heartbeat] = []
        """Beats of ranks whose process has ended without a goodbye."""
        self.verdict: Verdict | None = None
        """The verdict that a rank has published."""
        self.first_rank_is_lost = False
        """Whether the connection to the first rank is broken."""
        self._board = HeartbeatStore.open(world, self.beat())
        self._exchange(is_last=False)
        self._thread = threading.Thread(target=self._speak, name="watchdog-beats", daemon=True)
        self._thread.start()

    @property
    def is_blocked(self) -> bool:
        """Whether the thread was told to leave, and has not delivered its goodbye."""
        return self._leaving.is_set() and self._thread.is_alive()

    @property
    def is_alone(self) -> bool:
        """Whether the first rank has left in good order, so that no rank listens any more."""
        return not self._world.is_first and self.heard[0].is_last and self.verdict is None

    def beat(self, *, is_last: bool = False) -> Heartbeat:
        """This rank's heartbeat at this moment."""
        position, now = last_position(), time.monotonic()
        seems_stuck = now - position.since > self._stuck_seconds and not is_last
        waits = seems_stuck and self._main_thread.waits_for_others()
        return Heartbeat(self._world.rank, self._process, position, now, waits, is_last)

    def publish(self, verdict: Verdict) -> None:
        """Send a verdict to all ranks. `verdict` is set once they can read it, or to an earlier one."""
        self._to_publish = verdict
        self._hurry.set()

    def leave(self, limit_seconds: float) -> None:
        """Say goodbye. The first rank waits until all others have, or the limit has passed."""
        self._leaving.set()
        self._hurry.set()
        self._thread.join(limit_seconds)
        self._over.set()

    def missing(self) -> list[Heartbeat]:
        """On the first rank, the other ranks that can still say goodbye and have not."""
        if not self._world.is_first:
            return []
        unable = self.verdict.unable_to_end if self.verdict is not None else ()
        return [beat for beat in self.unparted() if beat.process not in unable and not beat.process.is_gone]

    def unparted(self) -> list[Heartbeat]:
        """The other ranks that have not said goodbye, as far as this rank knows."""
        return [beat for beat in self.heard if beat.rank != self._world.rank and not beat.is_last]

    def _speak(self) -> None:
        try:
            while not self._over.is_set():
                ending = self._is_ending
                self._exchange(is_last=ending)
                if ending and not self.missing():
                    return
                self._hurry.wait(_HURRIED_BEAT_SECONDS if self._is_ending else _BEAT_SECONDS)
                self._hurry.clear()
        except DistError:
            # After its goodbye the first rank ends, and its store with it.
            self.first_rank_is_lost = not self.is_alone

    @property
    def _is_ending(self) -> bool:
        # A rank that has read a verdict is about to end, and its goodbye tells the first rank that it has read it.
        return self._leaving.is_set() or self.verdict is not None

    def _exchange(self, *, is_last: bool) -> None:
        # A rank that ends in good order says goodbye first. So the goodbye is read after the end was seen.
        ended = {beat.rank for beat in self.heard if beat.process.is_gone}
        if self._to_publish is not None:
            self._board.publish(self._to_publish)
        # The first rank waits for the others' goodbyes, and may end with its store right after the last of them.
        looks_first = is_last and not self._world.is_first
        if looks_first:
            self.heard, self.verdict = self._board.look()
        self._board.give(self.beat(is_last=is_last))
        if not looks_first:
            self.heard, self.verdict = self._board.look()
        self.dead = [beat for beat in self.heard if beat.rank in ended and not beat.is_last]
