"""The training stream: streaming's order, each shard checked at its first use, one clear error for what is corrupt."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from megaslm.config.schema import FetchSection
from megaslm.dataset.mosaic import Stream, StreamingDataset
from megaslm.errors import DataError
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import MixtureStream
from tests.messages import Says
from tests.streams import (
    BATCH_ROWS,
    GIB,
    SHUFFLE_SEED,
    assert_right,
    cached_bytes,
    fetched,
    numbers,
    plan,
    shards_of,
    take,
    write_stream,
)

FETCH = FetchSection(retries=0, timeout_seconds=20)


def opened(
    *streams: MixtureStream, workers: int = 0, fetch: FetchSection = FETCH, micro_steps: int = 1
) -> TrainingStream:
    return TrainingStream(
        streams, plan(micro_steps=micro_steps), shuffle_seed=SHUFFLE_SEED, workers=workers, fetch=fetch
    )


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def streaming_order(
    stream: MixtureStream, epoch: int, rows_into_epoch: int, epoch_rows: int, workers: int
) -> list[int]:
    """The first token of each row, as plain streaming reads them."""
    dataset = StreamingDataset(
        streams=[Stream(local=str(stream.local))],
        epoch_size=epoch_rows,
        batch_size=BATCH_ROWS,
        shuffle=True,
        num_canonical_nodes=4,
        shuffle_seed=SHUFFLE_SEED,
    )
    dataset.load_state_dict(
        {"epoch": epoch, "sample_in_epoch": rows_into_epoch, "initial_physical_nodes": None, "num_canonical_nodes": 4,
         "shuffle_seed": SHUFFLE_SEED}
    )  # fmt: skip
    loader = DataLoader(dataset, batch_size=BATCH_ROWS, num_workers=workers, drop_last=True)
    return [int(row[0]) for batch in loader for row in batch["tokens"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_is_streamings_over_epochs_and_from_the_middle(tmp_path: Path, workers: int) -> None:
    stream = write_stream(tmp_path / "a", shards=5, rows_per_shard=11)
    epoch_rows = 52
    batches = take(opened(stream, workers=workers), 2 * epoch_rows // BATCH_ROWS)
    assert_right(batches)
    first_tokens = [int(row[0]) for batch in batches for row in batch.tokens]
    expected = [streaming_order(stream, epoch, 0, epoch_rows, workers) for epoch in (0, 1)]
    assert first_tokens == expected[0] + expected[1]
    assert [batch.visit for batch in batches] == [0] * 13 + [1] * 13
    resumed = take(opened(stream, workers=workers), 6, rows_seen=epoch_rows + 28)
    assert [int(row[0]) for batch in resumed for row in batch.tokens] == streaming_order(
        stream, 1, 28, epoch_rows, workers
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_goes_back_has_the_same_rows_again(tmp_path: Path, workers: int) -> None:
    stream = opened(write_stream(tmp_path / "a", shards=5, rows_per_shard=11), workers=workers)
    whole = numbers(take(stream, 20))
    assert numbers(take(stream, 20)) == whole
    # From the second epoch back into the first, and within that.
    assert numbers(take(stream, 4, rows_seen=5 * BATCH_ROWS)) == whole[5 * BATCH_ROWS : 9 * BATCH_ROWS]
    assert numbers(take(stream, 4, rows_seen=2 * BATCH_ROWS)) == whole[2 * BATCH_ROWS : 6 * BATCH_ROWS]


def test_rows_count_over_the_streams_and_domains_are_the_runs(tmp_path: Path) -> None:
    first = write_stream(tmp_path / "a", shards=2, domain=7)
    second = write_stream(tmp_path / "b", shards=2, domain=3, compression="zstd")
    batches = take(opened(first, second), 10)
    assert sorted(numbers(batches)) == list(range(40))
    for batch in batches:
        for place, number in enumerate(batch.rows.tolist()):
            assert batch.domain[place] == (7 if number < 20 else 3)
            assert batch.tokens[place][0] == number % 20 * 31


def test_an_epoch_of_everything_has_every_row_once(tmp_path: Path) -> None:
    """Shares of 14 and 30 rows are numbers that streaming, asked for 44 rows, rounds to 15 and 29."""
    streams = [write_stream(tmp_path / str(rows), shards=1, rows_per_shard=rows) for rows in (14, 30)]
    assert sorted(numbers(take(opened(*streams), 11))) == list(range(44))


def test_an_epoch_has_the_proportions_of_its_streams(tmp_path: Path) -> None:
    many = write_stream(tmp_path / "a", shards=2)
    few = write_stream(tmp_path / "b", shards=2)
    shares = {many: 0.75, few: 0.25}
    streams = [MixtureStream(s.local, None, s.rows, s.domain, share) for s, share in shares.items()]
    drawn = np.array(numbers(take(opened(*streams), 10)))
    assert ((drawn < 20).sum(), (drawn >= 20).sum()) == (30, 10)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_every_shard_is_checked_once_on_a_host(tmp_path: Path, compression: str | None, workers: int) -> None:
    stream = write_stream(tmp_path / "a", shards=6, compression=compression)
    training = opened(stream, workers=workers)
    assert training.checked().files == 0
    assert_right(take(training, 30))
    checked = training.checked()
    assert checked.files == 6
    assert checked.bytes == sum(shard.stored.bytes for shard in shards_of(stream))
    assert checked.seconds > 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_flipped_byte_is_refused_by_name(tmp_path: Path, compression: str | None, workers: int, says: Says) -> None:
    stream = write_stream(tmp_path / "a", shards=6, compression=compression)
    corrupt = shards_of(stream)[3]
    flip(stream.local / corrupt.stored.basename)
    with pytest.raises(DataError) as caught:
        take(opened(stream, workers=workers), 30)
    hashed = ("xxh3_64", corrupt.stored.hashes["xxh3_64"])
    says(caught, stream.local / corrupt.stored.basename, *hashed, "index.json", "(rows 30 to 39)")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_changes_after_the_start_is_refused_by_name(tmp_path: Path, workers: int, says: Says) -> None:
    stream = write_stream(tmp_path / "a", shards=3)
    training = opened(stream, workers=workers)
    path = stream.local / shards_of(stream)[1].stored.basename
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError) as refused:
        take(training, 8)
    says(refused, path, "index.json", "(rows 10 to 19)")


def test_a_shard_that_is_gone_is_refused_by_name(tmp_path: Path, says: Says) -> None:
    stream = write_stream(tmp_path / "a", shards=3)
    path = stream.local / shards_of(stream)[1].stored.basename
    path.unlink()
    with pytest.raises(DataError) as refused:
        take(opened(stream), 8)
    says(refused, path, "index.json", "(rows 10 to 19)")


def test_an_unpacked_shard_that_was_corrupt_is_unpacked_again(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "a", shards=3, compression="zstd")
    take(opened(stream), 7)
    flip(stream.local / shards_of(stream)[2].raw_data.basename)
    again = opened(stream)
    assert_right(take(again, 7))
    assert again.checked().files == 4


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_corrupt_shard_in_the_cache_is_fetched_again(tmp_path: Path, compression: str | None) -> None:
    stream = fetched(write_stream(tmp_path / "a", shards=3, compression=compression), tmp_path / "cache")
    first = opened(stream, fetch=FETCH)
    assert_right(take(first, 7))
    del first
    flip(stream.local / shards_of(stream)[1].raw_data.basename)
    again = opened(stream, fetch=FETCH)
    assert_right(take(again, 7))
    assert again.checked().files == 4 if compression is None else 5


def test_a_corrupt_shard_in_the_store_is_fetched_twice_and_refused(tmp_path: Path, says: Says) -> None:
    origin = write_stream(tmp_path / "a", shards=3)
    flip(origin.local / shards_of(origin)[1].stored.basename)
    stream = fetched(origin, tmp_path / "cache")
    with pytest.raises(DataError) as refused:
        take(opened(stream, fetch=FETCH), 8)
    says(refused, f"{origin.local}/part-00001/", "twice", "(rows 10 to 19)")
    assert not (stream.local / shards_of(stream)[1].stored.basename).exists()


def test_what_cannot_be_fetched_is_refused_with_its_cause(tmp_path: Path, says: Says) -> None:
    origin = write_stream(tmp_path / "a", shards=3)
    path = origin.local / shards_of(origin)[1].stored.basename
    path.unlink()
    with pytest.raises(DataError) as refused:
        take(opened(fetched(origin, tmp_path / "cache"), fetch=FETCH, workers=2), 8)
    says(refused, "part-00001/", "FileNotFoundError", "rows 10 to 19")


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_cache_smaller_than_the_dataset_keeps_to_its_limit(tmp_path: Path, compression: str | None) -> None:
    kept = write_stream(tmp_path / "kept", shards=3, domain=1)
    stream = fetched(write_stream(tmp_path / "a", shards=12, compression=compression), tmp_path / "cache")
    largest = max(shard.raw_data.bytes + (shard.zip_data.bytes if shard.zip_data else 0) for shard in shards_of(stream))
    limit = 4 * largest
    training = opened(stream, kept, fetch=FetchSection(cache_limit_gib=limit / GIB, retries=0, timeout_seconds=20))
    most_bytes, seen = 0, []
    for batch in islice(training.micro_batches(0), 37):
        seen += batch.rows.tolist()
        most_bytes = max(most_bytes, cached_bytes(training, stream.local))
    assert len(set(seen)) == len(seen) == 148
    assert largest < most_bytes <= limit
    assert all((kept.local / shard.stored.basename).is_file() for shard in shards_of(kept))


def test_a_cache_that_cannot_hold_a_few_shards_is_refused(tmp_path: Path, says: Says) -> None:
    stream = fetched(write_stream(tmp_path / "a", shards=3), tmp_path / "cache")
    with pytest.raises(DataError) as refused:
        opened(stream, fetch=FetchSection(cache_limit_gib=1000 / GIB, retries=0, timeout_seconds=20))
    says(refused, "1,000 bytes")


def test_fewer_rows_than_a_batch_are_refused(tmp_path: Path, says: Says) -> None:
    stream = write_stream(tmp_path / "a", shards=1)
    with pytest.raises(DataError) as refused:
        opened(stream, micro_steps=3)
    says(refused, "10 training rows", "12")
