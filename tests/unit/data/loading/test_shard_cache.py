"""Who makes a shard ready: one process of the host at a time, and nobody once it is."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megaslm.data.loading.fetch import FetchSettings
from megaslm.data.loading.shard_board import ShardBoard
from megaslm.data.loading.shard_cache import ShardCache, SharedState
from megaslm.data.loading.shard_files import ShardFiles
from megaslm.data.stream import ShardState, SharedArray, SharedScalar, Stream
from megaslm.errors import DataError
from tests.streams import shards_of, write_stream

PREFIXES = itertools.count(800_000 + os.getpid() % 10_000 * 10)
PATIENT = FetchSettings(cache_limit_bytes=None, retries=0, timeout_seconds=600)


@pytest.fixture
def shared(tmp_path: Path) -> SharedState:
    """The state of a host where no process has begun with any of two shards."""
    prefix = next(PREFIXES)
    state = SharedState(
        states=SharedArray(2, np.uint8, f"{prefix:06}_states"),
        access_times=SharedArray(2, np.uint64, f"{prefix:06}_times"),
        usage_bytes=SharedScalar(np.int64, f"{prefix:06}_usage"),
        board=ShardBoard(prefix, 2),
        lock_file=str(tmp_path / "lock"),
    )
    for shard in range(2):
        state.states[shard] = ShardState.LOCAL
    return state


@pytest.fixture
def cache(tmp_path: Path, shared: SharedState) -> ShardCache:
    stream = write_stream(tmp_path / "a", shards=2)
    files = [ShardFiles(Stream(local=str(stream.local)), shard, 0) for shard in shards_of(stream)]
    return ShardCache(files, shared, PATIENT)


def test_a_shard_is_checked_once(cache: ShardCache, shared: SharedState) -> None:
    cache.make_ready(1)
    cache.make_ready(1)
    assert [cache.is_ready(shard) for shard in (0, 1)] == [False, True]
    assert (shared.board.checks().files, shared.board.preparer(1)) == (1, None)


def test_what_another_process_is_at_is_left_to_it(cache: ShardCache, shared: SharedState) -> None:
    shared.states[0] = ShardState.PREPARING
    shared.board.claim(0)
    cache.make_ready(0)
    assert shared.board.checks().files == 0
    cache.refuse_hopeless(0, waited_seconds=1)


def test_waiting_for_a_dead_process_is_hopeless(
    cache: ShardCache, shared: SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        monkeypatch.setattr(os, "getpid", lambda: dead.pid)
        shared.board.claim(0)
        monkeypatch.undo()
        dead.wait()
    shared.states[0] = ShardState.PREPARING
    with pytest.raises(DataError, match=f"process {dead.pid} of this host died while it made the shard ready"):
        cache.refuse_hopeless(0, waited_seconds=0)


def test_one_message_reaches_all(cache: ShardCache, shared: SharedState) -> None:
    shared.board.fail("the first – reason")
    shared.board.fail("the second")
    with pytest.raises(DataError, match=r"^the first – reason$"):
        cache.refuse_hopeless(1, waited_seconds=0)
