"""The watchdog of a job: finds the rank that is silent, dead or stuck, names it, and ends the job.

It uses no collective, because collectives hang. On every rank one thread sends a heartbeat twice a second, and a second
thread judges: on the first rank all other ranks, on the others the first rank.
"""

import threading
import time
from types import TracebackType
from typing import NoReturn, Self

from megaslm.engine.distributed import World
from megaslm.errors import MegaSLMError, PeerFailed
from megaslm.health.heartbeats import AwakeClock, HeartbeatThread, HeartbeatTracker
from megaslm.health.stacks import end, say
from megaslm.health.verdict import (
    Verdict,
    on_death,
    on_death_of_first,
    on_failure,
    on_silence,
    on_standstill,
)

_JUDGE_SECONDS = 0.1
# A rank with a beat within this time is alive, though it may stand still.
_FRESH_SECONDS = 4.0
_FAREWELL_SECONDS = 6.0
# Within this time all ranks that can run have read the verdict and printed their stacks.
_LAST_SECONDS = 0.8
_MOST_LAST_SECONDS = 2.5


class Watchdog:
    """Within its context the ranks of a job watch one another. All of them enter it.

    The job is ended within 3 s after one of these limits:

    - `silence_seconds`: a rank has sent no heartbeat, because its process is stopped or killed, or its host is gone.
      The death of a process on the first rank's host, and that of the first rank itself, are reported without a limit.
    - `hang_seconds`: all ranks send beats, but none changes its position (`megaslm.engine.heartbeat`).
      `guilty_of_standstill` decides which rank the others wait for.

    Every rank that can run then prints the finding and its own stacks, kills the silent processes of its host, and ends
    with status 1. Where a rank fails with an error, the others have 5 s to fail in their own collectives; then they are
    ended with its exit status. A job that is suspended as a whole and later continued is left alone.
    """

    def __init__(self, world: World, *, silence_seconds: float, hang_seconds: float) -> None:
        self._world = world
        self._silence_seconds = silence_seconds
        self._hang_seconds = hang_seconds
        self._leaving = threading.Event()
        self._ending = threading.Lock()

    def __enter__(self) -> Self:
        self._heartbeats = HeartbeatThread(self._world, stuck_seconds=self._hang_seconds / 2)
        threading.Thread(target=self._judge, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Sends the goodbye, or this rank's failure. The first rank then waits some seconds for those of the others.

        Raises:
            PeerFailed: in place of an error that only follows from another rank's failure.
        """
        self._leaving.set()
        if error is not None and not isinstance(error, PeerFailed):
            self._heartbeats.publish(on_failure(self._heartbeats.beat(), error))
        self._heartbeats.leave(_FAREWELL_SECONDS)
        verdict = self._heartbeats.verdict
        if verdict is not None and not verdict.grace_seconds:
            self._end(verdict)
        if error is not None and not isinstance(error, MegaSLMError):
            self._name_the_missing()
            if verdict is not None and verdict.found_by != self._world.rank:
                say(self._world.rank, f"ends as another has: {verdict.finding}")
                raise PeerFailed(verdict.finding, verdict.exit_status) from error

    def _judge(self) -> None:
        clock, tracker = AwakeClock(), HeartbeatTracker()
        while not self._leaving.wait(_JUDGE_SECONDS) and not self._heartbeats.is_alone:
            now = clock.tick()
            tracker.hear(self._heartbeats.heard, now)
            verdict = self._heartbeats.verdict or self._finding(tracker, now)
            if verdict is None:
                continue
            if self._world.is_first and self._heartbeats.verdict is None:
                self._heartbeats.publish(verdict)
            elif not (verdict.grace_seconds and self._leaving.wait(verdict.grace_seconds)):
                self._end(verdict)

    def _finding(self, tracker: HeartbeatTracker, now: float) -> Verdict | None:
        rank, heartbeats = self._world.rank, self._heartbeats
        first = heartbeats.heard[0]
        # Processes forked by a dead rank may keep its connection open for some seconds longer.
        if not self._world.is_first and (heartbeats.first_rank_is_lost or first.process.is_gone):
            return on_death_of_first(first, rank)
        if heartbeats.dead:
            return on_death(heartbeats.dead, rank)
        silent = tracker.silent(now, self._silence_seconds)
        if silent:
            return on_silence(silent, rank)
        seconds = tracker.seconds_at_a_standstill(now)
        if self._world.is_first and seconds > self._hang_seconds and not tracker.silent(now, _FRESH_SECONDS):
            return on_standstill(tracker.present, seconds, rank)
        return None

    def _end(self, verdict: Verdict) -> NoReturn:
        # Two threads may arrive here; the first one continues, and ends the process with the other.
        self._ending.acquire()
        end(self._world.rank, verdict, self._stay_for_the_others)

    def _stay_for_the_others(self) -> None:
        """When this process ends, the others' collectives fail; when the first rank ends, they lose the verdict."""
        began = time.monotonic()
        time.sleep(_LAST_SECONDS)
        while self._heartbeats.missing() and time.monotonic() - began < _MOST_LAST_SECONDS:
            time.sleep(_JUDGE_SECONDS)

    def _name_the_missing(self) -> None:
        """Names ranks because an error of a collective does not say which rank has broken the connection."""
        heartbeats = self._heartbeats
        if self._world.is_first or heartbeats.first_rank_is_lost or heartbeats.is_blocked:
            for beat in heartbeats.unparted():
                say(self._world.rank, f"{beat} has not said goodbye; its process is {beat.process.state}")
