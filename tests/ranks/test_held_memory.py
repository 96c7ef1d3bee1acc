"""What a process holds, beside freed memory that glibc keeps."""

import multiprocessing
import time

import pytest
import torch

from megaslm.health.held_memory import HostMemory, PeakWatch

MIB = 1 << 20


def written(mib: int) -> torch.Tensor:
    return torch.ones(mib * MIB, dtype=torch.uint8)


def freed() -> tuple[HostMemory, HostMemory, HostMemory]:
    """Before blocks are allocated, with them, and with every other one freed."""
    # From the first freed block of this size on, glibc takes smaller ones from the heap.
    written(31)
    before = HostMemory.now()
    blocks = [written(4) for _ in range(32)]
    full = HostMemory.now()
    # Every other one: glibc gives back only the end of the heap.
    del blocks[::2]
    return before, full, HostMemory.now()


def test_freed_memory_that_glibc_keeps_is_resident_and_not_held() -> None:
    # A new process: freed blocks that an older one never touched are not resident, and would be filled first.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, full, now = pool.apply(freed)
    assert full.held - before.held == pytest.approx(128 * MIB, rel=0.1)
    assert now.held - before.held == pytest.approx(64 * MIB, rel=0.1)
    assert now.resident - full.resident == pytest.approx(0, abs=4 * MIB)


def test_a_watch_sees_the_peak_between_its_two_ends() -> None:
    before = HostMemory.now()
    watch = PeakWatch()
    block = written(256)
    patience = time.monotonic() + 60
    while watch.peak.held < before.held + 250 * MIB and time.monotonic() < patience:
        time.sleep(0.001)
    del block
    peak = watch.stop()
    assert peak.held - before.held == pytest.approx(256 * MIB, rel=0.1)
    assert peak.resident - before.resident == pytest.approx(256 * MIB, rel=0.1)
    later = written(512)
    assert watch.stop() == peak
    del later
