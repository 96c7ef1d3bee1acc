"""What the processes of a host tell one another of a run's shards: which are ready, who is at work, what failed."""

import os
from dataclasses import dataclass

import numpy as np

from megaslm.data.stream import SharedArray, shared_name

_NUMBERS, _FAILURE = "megaslm_shards", "megaslm_failure"
BOARD_OBJECTS = (_NUMBERS, _FAILURE)
"""What a board keeps in shared memory, each after the prefix of the run."""

_CHECKED = -1
"""What stands for a shard that was made ready: 0 for one that nobody has begun, else who is making it ready."""
_FILES, _BYTES, _NANOSECONDS, _FAILURE_BYTES, _HEAD = range(5)
_MOST_FAILURE_BYTES = 8192


@dataclass(frozen=True)
class ShardChecks:
    """What comparing shards with their checksums has cost on this host so far."""

    files: int
    """Files that were compared."""
    bytes: int
    """Their size."""
    seconds: float
    """Time of the threads that did it, added up."""


class ShardBoard:
    """One number a shard, sums and a message, in shared memory; whoever writes holds the lock of the run's cache."""

    def __init__(self, prefix: int, shards: int) -> None:
        """Opens the board of the run with this prefix; whoever comes first makes it, with zeros."""
        self._numbers = SharedArray(_HEAD + shards, np.int64, shared_name(prefix, _NUMBERS))
        self._failure = SharedArray(_MOST_FAILURE_BYTES, np.uint8, shared_name(prefix, _FAILURE))

    def claim(self, shard: int) -> None:
        """This process makes the shard ready."""
        self._numbers[_HEAD + shard] = os.getpid()

    def finish(self, shard: int) -> None:
        """The shard is ready."""
        self._numbers[_HEAD + shard] = _CHECKED

    def is_checked(self, shard: int) -> bool:
        """Whether the shard was made ready once."""
        return bool(self._numbers[_HEAD + shard] == _CHECKED)

    def preparer(self, shard: int) -> int | None:
        """The process that makes the shard ready, by its number; None where none does."""
        number = int(self._numbers[_HEAD + shard])
        return number if number > 0 else None

    def fail(self, message: str) -> None:
        """Tells all processes of the host that one of them cannot go on, and why; the first message stays."""
        if self.failure() is None:
            content = np.frombuffer(message.encode()[:_MOST_FAILURE_BYTES], dtype=np.uint8)
            self._failure[: len(content)] = content
            self._numbers[_FAILURE_BYTES] = len(content)

    def failure(self) -> str | None:
        """Why a process of the host cannot go on; None where all can."""
        length = int(self._numbers[_FAILURE_BYTES])
        return bytes(self._failure[:length]).decode(errors="replace") if length else None

    def add_checks(self, checks: ShardChecks) -> None:
        """Counts what was compared."""
        self._numbers[_FILES] += checks.files
        self._numbers[_BYTES] += checks.bytes
        self._numbers[_NANOSECONDS] += round(checks.seconds * 1e9)

    def checks(self) -> ShardChecks:
        """What was compared so far, by all processes of the host."""
        files, size, nanoseconds = (int(self._numbers[place]) for place in (_FILES, _BYTES, _NANOSECONDS))
        return ShardChecks(files, size, nanoseconds / 1e9)
