"""The thread by which a rank gives its signs of life and hears those of others."""

import threading
import time

from torch.distributed import DistError

from megaslm.engine.distributed import World
from megaslm.engine.liveness.life_signs import Sign
from megaslm.engine.liveness.processes import Process
from megaslm.engine.liveness.sign_board import SignBoard
from megaslm.engine.liveness.stacks import MainThread
from megaslm.engine.liveness.verdict import Verdict
from megaslm.engine.places import here

_SIGN_SECONDS = 0.5
_HURRIED_SIGN_SECONDS = 0.1


class Speaker:
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
        self.heard: list[Sign] = []
        """The newest signs: in the first rank those of all, in the others the first rank's."""
        self.dead: list[Sign] = []
        """Of those, the ones whose process has ended without a goodbye."""
        self.verdict: Verdict | None = None
        """What a rank has found and published."""
        self.first_rank_is_lost = False
        """Whether the connection to it is broken."""
        self._board = SignBoard.open(world, self.sign())
        self._exchange(is_last=False)
        self._thread = threading.Thread(target=self._speak, name="watchdog-signs", daemon=True)
        self._thread.start()

    @property
    def is_blocked(self) -> bool:
        """Whether it has been told to leave, and has not got the goodbye through."""
        return self._leaving.is_set() and self._thread.is_alive()

    @property
    def is_alone(self) -> bool:
        """Whether the first rank has left in good order, so that nobody listens any more."""
        return not self._world.is_first and self.heard[0].is_last and self.verdict is None

    def sign(self, *, is_last: bool = False) -> Sign:
        """This rank's sign of life of this moment."""
        place, now = here(), time.monotonic()
        seems_stuck = now - place.since > self._stuck_seconds and not is_last
        waits = seems_stuck and self._main_thread.waits_for_others()
        return Sign(self._world.rank, self._process, place, now, waits, is_last)

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

    def missing(self) -> list[Sign]:
        """In the first rank, the others that can still say goodbye and have not."""
        if not self._world.is_first:
            return []
        unable = self.verdict.unable_to_end if self.verdict is not None else ()
        return [sign for sign in self.unparted() if sign.process not in unable and not sign.process.is_gone]

    def unparted(self) -> list[Sign]:
        """The other ranks that have not said goodbye, as far as this one hears them."""
        return [sign for sign in self.heard if sign.rank != self._world.rank and not sign.is_last]

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
        ended = {sign.rank for sign in self.heard if sign.process.is_gone}
        if self._to_publish is not None:
            self._board.publish(self._to_publish)
        # The first rank waits for the others' goodbyes, and may be gone with its store right after the last of them.
        looks_first = is_last and not self._world.is_first
        if looks_first:
            self.heard, self.verdict = self._board.look()
        self._board.give(self.sign(is_last=is_last))
        if not looks_first:
            self.heard, self.verdict = self._board.look()
        self.dead = [sign for sign in self.heard if sign.rank in ended and not sign.is_last]
