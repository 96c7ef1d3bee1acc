"""The thread by which a rank gives its heartbeats and hears those of others, through a store on the first rank.

Each rank keeps time by its own clock: clocks of several hosts are never compared.
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
# A slow store is waited for, however long: who waits is a thread with nothing else to do, and another one watches it.
_ANSWER_TIMEOUT = timedelta(days=7)
_VERDICT = "verdict"
_LONGEST_TICK_SECONDS = 1.0
_SIGN_SECONDS = 0.5
_HURRIED_SIGN_SECONDS = 0.1


class HeartbeatStore:
    """One connection to the store, for one thread. Every method raises DistError where the first rank is gone."""

    def __init__(self, store: Store, readable: range) -> None:
        """Reads the beats of the ranks in `readable` only."""
        self._store = store
        self._keys = [_key(rank) for rank in readable]

    @classmethod
    def open(cls, world: World, beat: Heartbeat) -> Self:
        """Called by every rank with its first beat. The first rank will read those of all, the others only its own.

        Raises:
            PeerFailed: the first rank cannot serve the store, and has said why.
        """
        served: list[Store] = []

        def serve() -> int:
            store, port = serve_store(world.size)
            served.append(store)
            # Whoever reads waits for a key that is not there; an empty text is no beat.
            for key in (*map(_key, range(world.size)), _VERDICT):
                store.set(key, "")
            # The first rank's own beat is there before the others can look for it.
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
        """Leave a beat in place of the rank's former one."""
        self._store.set(_key(beat.rank), beat.encode())

    def publish(self, verdict: Verdict) -> None:
        """Tell all ranks; where there is a verdict already it stands."""
        self._store.compare_set(_VERDICT, "", verdict.encode())

    def look(self) -> tuple[list[Heartbeat], Verdict | None]:
        """The beats of the readable ranks that have given one, in rank order, and the verdict."""
        *beats, verdict = self._store.multi_get([*self._keys, _VERDICT])
        return [Heartbeat.decode(beat) for beat in beats if beat], Verdict.decode(verdict) if verdict else None


def _key(rank: int) -> str:
    return f"beat-{rank}"


class AwakeClock:
    """Counts the seconds in which this process could run and listen.

    A scheduler may suspend a whole job. None of its ranks has been silent then, and none has hung.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ticked_at = time.monotonic()

    def tick(self) -> float:
        """The seconds so far; to be called several times a second."""
        now = time.monotonic()
        self._seconds += min(now - self._ticked_at, _LONGEST_TICK_SECONDS)
        self._ticked_at = now
        return self._seconds


class HeartbeatTracker:
    """The ranks that were heard, from the first beat of each; who has said goodbye is no longer expected."""

    def __init__(self) -> None:
        self._beats: dict[int, Heartbeat] = {}
        self._heard_at: dict[int, float] = {}
        self._moved_at = 0.0

    def hear(self, beats: Iterable[Heartbeat], now: float) -> None:
        """Note the newest beat of each rank; `now` is in seconds of the listener's clock."""
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
        """The last beat of every rank that is expected to give more, in rank order."""
        return [beat for _, beat in sorted(self._beats.items()) if not beat.is_last]

    def silent(self, now: float, limit_seconds: float) -> list[tuple[Heartbeat, float]]:
        """The ranks that have given no beat for longer than the limit, and for how many seconds."""
        waited = ((beat, now - self._heard_at[beat.rank]) for beat in self.present)
        return [(beat, seconds) for beat, seconds in waited if seconds > limit_seconds]

    def seconds_at_a_standstill(self, now: float) -> float:
        """For how long no rank has come to another place of its work."""
        return now - self._moved_at if self.present else 0.0


class HeartbeatThread:
    """Speaks until this rank has left, and alone uses the connection to the others: it may block for long."""

    def __init__(self, world: World, *, stuck_seconds: float) -> None:
        """Called by every rank; what waits for others is looked at once a rank has not moved for `stuck_seconds`."""
        self._world = world
        self._stuck_seconds = stuck_seconds
        self._process = Process.own()
        self._main_thread = MainThread(world.device)
        self._to_publish: Verdict | None = None
        self._leaving = threading.Event()
        self._over = threading.Event()
        self._hurry = threading.Event()
        self.heard: list[Heartbeat] = []
        """The newest beats: in the first rank those of all, in the others the first rank's."""
        self.dead: list[Heartbeat] = []
        """Of those, the ones whose process has ended without a goodbye."""
        self.verdict: Verdict | None = None
        """What a rank has found and published."""
        self.first_rank_is_lost = False
        """Whether the connection to it is broken."""
        self._board = HeartbeatStore.open(world, self.beat())
        self._exchange(is_last=False)
        self._thread = threading.Thread(target=self._speak, name="watchdog-beats", daemon=True)
        self._thread.start()

    @property
    def is_blocked(self) -> bool:
        """Whether it has been told to leave, and has not got the goodbye through."""
        return self._leaving.is_set() and self._thread.is_alive()

    @property
    def is_alone(self) -> bool:
        """Whether the first rank has left in good order, so that nobody listens any more."""
        return not self._world.is_first and self.heard[0].is_last and self.verdict is None

    def beat(self, *, is_last: bool = False) -> Heartbeat:
        """This rank's heartbeat of this moment."""
        position, now = last_position(), time.monotonic()
        seems_stuck = now - position.since > self._stuck_seconds and not is_last
        waits = seems_stuck and self._main_thread.waits_for_others()
        return Heartbeat(self._world.rank, self._process, position, now, waits, is_last)

    def publish(self, verdict: Verdict) -> None:
        """Tell all ranks; `verdict` shows it once they can know, or another one that came before."""
        self._to_publish = verdict
        self._hurry.set()

    def leave(self, limit_seconds: float) -> None:
        """Say goodbye; the first rank waits until all others have, or the limit has passed."""
        self._leaving.set()
        self._hurry.set()
        self._thread.join(limit_seconds)
        self._over.set()

    def missing(self) -> list[Heartbeat]:
        """In the first rank, the others that can still say goodbye and have not."""
        if not self._world.is_first:
            return []
        unable = self.verdict.unable_to_end if self.verdict is not None else ()
        return [beat for beat in self.unparted() if beat.process not in unable and not beat.process.is_gone]

    def unparted(self) -> list[Heartbeat]:
        """The other ranks that have not said goodbye, as far as this one hears them."""
        return [beat for beat in self.heard if beat.rank != self._world.rank and not beat.is_last]

    def _speak(self) -> None:
        try:
            while not self._over.is_set():
                ending = self._is_ending
                self._exchange(is_last=ending)
                if ending and not self.missing():
                    return
                self._hurry.wait(_HURRIED_SIGN_SECONDS if self._is_ending else _SIGN_SECONDS)
                self._hurry.clear()
        except DistError:
            # The first rank goes with its store once it has said goodbye.
            self.first_rank_is_lost = not self.is_alone

    @property
    def _is_ending(self) -> bool:
        # A rank that has heard a verdict is going to end, and its goodbye lets the first one know that it has heard.
        return self._leaving.is_set() or self.verdict is not None

    def _exchange(self, *, is_last: bool) -> None:
        # Who ends in good order says goodbye before. Looked for after the end was seen, the goodbye is found.
        ended = {beat.rank for beat in self.heard if beat.process.is_gone}
        if self._to_publish is not None:
            self._board.publish(self._to_publish)
        # The first rank waits for the others' goodbyes, and may be gone with its store right after the last of them.
        looks_first = is_last and not self._world.is_first
        if looks_first:
            self.heard, self.verdict = self._board.look()
        self._board.give(self.beat(is_last=is_last))
        if not looks_first:
            self.heard, self.verdict = self._board.look()
        self.dead = [beat for beat in self.heard if beat.rank in ended and not beat.is_last]
