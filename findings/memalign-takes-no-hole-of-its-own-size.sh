#!/usr/bin/env bash
# glibc 2.36's posix_memalign(64, n) looks for n + 96 bytes and then cuts off what is too much. A freed block with its
# neighbours in use has room for n + 48 at most, so the next block of its size takes new memory: the heap doubles. malloc
# takes the hole. PyTorch allocates every tensor on a CPU by posix_memalign, and resident memory grows by such holes.
set -euo pipefail
python3 - <<'PYTHON'
import ctypes
import sys

MMAP_THRESHOLD, BLOCK, BLOCKS = -3, 2 << 20, 50
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.gnu_get_libc_version.restype = ctypes.c_char_p
# As after the first freed block of 32 MiB: from then on all smaller ones lie in the heap.
libc.mallopt(MMAP_THRESHOLD, 32 << 20)


def aligned(size):
    block = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size)) == 0
    return block


def growth(allocate):
    """Of the heap, by blocks in place of as many that were freed, each between two that stay."""
    blocks = []
    for _ in range(BLOCKS):
        blocks.append(allocate(BLOCK))
        allocate(4096)
    for block in blocks:
        libc.free(block)
    before = libc.mallinfo2().arena
    for _ in range(BLOCKS):
        allocate(BLOCK)
    return (libc.mallinfo2().arena - before) / (BLOCKS * BLOCK)


by_malloc, by_memalign = growth(libc.malloc), growth(aligned)
print(libc.gnu_get_libc_version().decode(), f"new memory, malloc: {by_malloc:.0%}, posix_memalign: {by_memalign:.0%}")
sys.exit(not (by_malloc < 0.1 and by_memalign > 0.9))
PYTHON
