"""The memory that this process holds: what is resident, without the freed memory that glibc keeps.

PyTorch takes its tensors from `posix_memalign`. For n bytes on a multiple of 64, glibc looks for n + 96. So the hole of
a freed tensor between two others has no room for the next one of its size. How many holes stay depends on the order of
all allocations before, and no plan foresees them.
"""

import ctypes
import threading
from dataclasses import dataclass

from megaslm.health.host_facts import resident_bytes

_SAMPLE_SECONDS = 0.01
"""A sample takes 0.1 ms of processor time."""


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


_libc = ctypes.CDLL(None)
_mallinfo = getattr(_libc, "mallinfo2", None)
if _mallinfo is not None:
    _mallinfo.restype = _Mallinfo


def freed_bytes() -> int:
    """Freed memory that glibc keeps to give it out again. 0 where it does not tell: it does from 2.33 on."""
    return 0 if _mallinfo is None else int(_mallinfo().fordblks)


@dataclass(frozen=True)
class HostMemory:
    """Bytes of this process, at one time or the most of several."""

    held: int
    """Resident, without `freed_bytes`."""
    resident: int

    @classmethod
    def now(cls) -> "HostMemory":
        """Reads both."""
        before, freed, after = resident_bytes("VmRSS"), freed_bytes(), resident_bytes("VmRSS")
        # Where glibc gives memory back between two readings, it would count as held in the one before.
        return cls(min(before, after) - freed, after)

    def most(self, other: "HostMemory") -> "HostMemory":
        """The larger of each."""
        return HostMemory(max(self.held, other.held), max(self.resident, other.resident))


class PeakWatch:
    """The most that this process holds from now on, sampled by a thread of its own until `stop`."""

    def __init__(self) -> None:
        self.peak = HostMemory.now()
        """The most so far; each of the two at its own time."""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._thread.start()

    def stop(self) -> HostMemory:
        """Ends the thread and gives the peak."""
        self._is_over.set()
        self._thread.join()
        return self.peak

    def _sample(self) -> None:
        while not self._is_over.wait(_SAMPLE_SECONDS):
            self.peak = self.peak.most(HostMemory.now())
