"""The shards of a host: who makes them ready, which leave for others, and what readers keep meanwhile."""

import os
import signal
import time
from pathlib import Path

import pytest

from megaslm.config.schema import FetchSection
from megaslm.dataset.index import read_index
from megaslm.errors import DataError
from megaslm.stream.host_folder import HostFolder
from megaslm.stream.mixture import MixtureStream
from megaslm.stream.shard_files import files_of
from megaslm.stream.shards import TrainingShards
from tests.forks import fork, statuses_of, wait_until
from tests.messages import Says
from tests.streams import GIB, fetched, row_tokens, shards_of, write_stream

SHARDS, ROWS = 8, 10


def limited(stream: MixtureStream, shards: int) -> FetchSection:
    """Room for so many shards."""
    size = max(shard.raw_data.bytes for shard in shards_of(stream))
    return FetchSection(cache_limit_gib=shards * size / GIB, retries=0, timeout_seconds=5)


class Reader:
    """One process's view, on its own."""

    def __init__(self, stream: MixtureStream, fetch: FetchSection, host: str = "run") -> None:
        files = list(files_of(stream, read_index(stream.local)))
        self.shards = TrainingShards(files, HostFolder(host), fetch)

    def read(self, shard: int) -> None:
        """The first row of a shard, compared."""
        row = self.shards.row(shard * ROWS, shard)
        assert row["tokens"].tolist() == row_tokens(shard * ROWS, 1)[0].tolist()


@pytest.fixture
def stream(tmp_path: Path) -> MixtureStream:
    return fetched(write_stream(tmp_path / "a", shards=SHARDS), tmp_path / "cache")


def cached(stream: MixtureStream) -> set[int]:
    return {
        number for number, shard in enumerate(shards_of(stream)) if (stream.local / shard.raw_data.basename).exists()
    }


def test_the_oldest_that_nobody_has_mapped_leaves(stream: MixtureStream) -> None:
    reader, other = (Reader(stream, limited(stream, 4)) for _ in range(2))
    for shard in range(4):
        reader.read(shard)
    other.read(0)
    reader.shards.keep_mapped({2})
    reader.read(4)
    # 0 is older, but the other has it mapped; of the others, 1 was let go of first.
    assert cached(stream) == {0, 2, 3, 4}
    reader.shards.keep_mapped(())
    reader.read(1)
    assert cached(stream) == {0, 1, 2, 4} or cached(stream) == {0, 1, 3, 4}
    other.read(0)


def test_what_was_read_last_stays_also_if_it_came_first(stream: MixtureStream) -> None:
    reader = Reader(stream, limited(stream, 4))
    for shard in range(4):
        reader.read(shard)
    for kept in ((0, 1), (0,), ()):
        reader.shards.keep_mapped(kept)
        # The clock of file times has ticks of up to 10 ms.
        time.sleep(0.02)
    reader.read(4)
    assert cached(stream) == {0, 1, 3, 4}
    reader.read(5)
    assert cached(stream) == {0, 1, 4, 5}


def test_where_all_are_mapped_the_oldest_leaves_and_stays_readable_for_who_has_it(stream: MixtureStream) -> None:
    reader, other = (Reader(stream, limited(stream, 4)) for _ in range(2))
    for shard in range(4):
        other.read(shard)
    mapped = other.shards._maps[0]
    reader.read(5)
    assert cached(stream) == {1, 2, 3, 5}
    assert mapped["tokens"][0].tolist() == row_tokens(0, 1)[0].tolist()
    # The next map lets go of it, and it is fetched again when it is needed.
    other.read(6)
    assert 0 not in other.shards._maps
    other.read(0)


@pytest.mark.parametrize("limit", [None, SHARDS])
def test_a_shard_that_was_evicted_by_hand_is_read_on_and_fetched_again(
    stream: MixtureStream, limit: int | None
) -> None:
    fetch = FetchSection(retries=0, timeout_seconds=5) if limit is None else limited(stream, limit)
    reader = Reader(stream, fetch)
    reader.read(3)
    (stream.local / shards_of(stream)[3].raw_data.basename).unlink()
    reader.read(3)
    other = Reader(stream, fetch)
    other.read(3)
    assert 3 in cached(stream)


def test_a_shard_is_finished_by_another_where_its_maker_is_killed(stream: MixtureStream, tmp_path: Path) -> None:
    began = tmp_path / "began"

    def die() -> None:
        reader = Reader(stream, limited(stream, 4))

        def fetch_for_ever(*_: object) -> None:
            began.touch()
            time.sleep(60)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("megaslm.stream.shard_files.fetch_shard", fetch_for_ever)
            reader.shards.make_ready(0)

    host = HostFolder("run")
    maker = fork(die)
    wait_until(began.exists)
    reader = Reader(stream, limited(stream, 4))
    reader.shards.make_ready(0)
    assert not reader.shards.is_ready(0)
    os.kill(maker, signal.SIGKILL)
    assert statuses_of([maker]) == [-signal.SIGKILL]
    reader.read(0)
    # The place that was kept for the shard is taken by it.
    for shard in range(1, 4):
        reader.read(shard)
    assert cached(stream) == {0, 1, 2, 3}
    assert host.failure() is None


def test_what_one_cannot_have_ends_all_who_wait_with_its_reason(
    stream: MixtureStream, tmp_path: Path, says: Says
) -> None:
    (tmp_path / "a" / shards_of(stream)[2].raw_data.basename).unlink()
    fetch = FetchSection(retries=0, timeout_seconds=5)
    reader, other = (Reader(stream, fetch) for _ in range(2))
    with pytest.raises(DataError) as first, reader.shards:
        reader.read(2)
    says(first, "part-00002/")
    with pytest.raises(DataError) as second:
        other.read(3)
    assert str(second.value) == str(first.value)


def test_rows_say_of_what_shard_they_are() -> None:
    """Ends of shards are where the next ones begin."""
    shards = TrainingShards.__new__(TrainingShards)
    shards._ends = [3, 4, 6]
    assert [shards.shard_of(number) for number in range(6)] == [0, 0, 0, 1, 2, 2]
