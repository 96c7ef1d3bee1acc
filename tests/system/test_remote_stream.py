"""Shards that are fetched from an S3 server over HTTP, through a proxy that fails as a network does."""

import os
import re
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from megaslm.config.schema import FetchSection
from megaslm.engine.distributed import join_world
from megaslm.errors import DataError
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import MixtureStream
from tests.forks import fork_two_ranks, statuses_of, wait_until
from tests.s3 import Answer, Bucket, Fault, FaultyS3, Rule, Stall, Truncate
from tests.streams import (
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

SHARDS = 6
PREFIX = "data/train/a"
PATIENT = FetchSection(retries=3, timeout_seconds=20)
FEW_TRIES = FetchSection(retries=1, timeout_seconds=60)
LONG = FetchSection(retries=0, timeout_seconds=600)
HASTY = FetchSection(retries=1, timeout_seconds=2)


def uploaded(bucket: Bucket, folder: Path, *, shards: int = SHARDS, compression: str | None = None) -> MixtureStream:
    """A stream whose shards are in the bucket, and whose cache is empty."""
    stream = write_stream(folder / "local", shards, compression=compression)
    for shard in shards_of(stream):
        bucket.put(f"{PREFIX}/{shard.stored.basename}", (stream.local / shard.stored.basename).read_bytes())
    return fetched(stream, folder / "cache", remote=bucket.url(PREFIX))


def opened(stream: MixtureStream, fetch: FetchSection, workers: int = 0) -> TrainingStream:
    return TrainingStream([stream], plan(), shuffle_seed=SHUFFLE_SEED, workers=workers, fetch=fetch)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_rows_are_right_and_every_shard_is_fetched_once(s3: Bucket, tmp_path: Path, compression: str | None) -> None:
    stream = uploaded(s3, tmp_path, compression=compression)
    training = opened(stream, PATIENT)
    batches = take(training, 15)
    assert_right(batches)
    assert sorted(numbers(batches)) == list(range(60))
    assert training.checked().files == SHARDS


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        Rule(Answer(500), nth=(1, 4, 5, 9)),
        Rule(Answer(503, "SlowDown"), fraction=0.3, seed=1),
        Rule(Stall(60), nth=(2,)),
        Rule(Stall(60, after_bytes=100), nth=(3,)),
        Rule(Truncate(after_bytes=100), nth=(1, 2, 5)),
    ],
    ids=["500", "503", "stall", "stall in the middle", "truncated"],
)
def test_faults_that_pass_do_not_change_a_row(faulty_s3: FaultyS3, tmp_path: Path, rule: Rule) -> None:
    stream = uploaded(faulty_s3.bucket, tmp_path)
    faulty_s3.proxy.rules.append(rule)
    batches = take(opened(stream, PATIENT), 15)
    assert_right(batches)
    assert sorted(numbers(batches)) == list(range(60))
    assert faulty_s3.proxy.faults > 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "fetch", "complaint"),
    [
        (Answer(500), HASTY, "2 times|after [2-4] seconds"),
        (Answer(404, "NoSuchKey"), FEW_TRIES, "FileNotFoundError"),
        (Stall(60), HASTY, "after [2-4] seconds: process [0-9]+ "),
    ],
    ids=["500", "404", "stall"],
)
def test_faults_that_stay_end_the_run_by_the_name_of_the_shard(
    faulty_s3: FaultyS3, tmp_path: Path, fault: Fault, fetch: FetchSection, complaint: str, workers: int
) -> None:
    stream = uploaded(faulty_s3.bucket, tmp_path)
    faulty_s3.proxy.rules.append(Rule(fault, methods=("GET", "HEAD")))
    started = time.monotonic()
    with pytest.raises(DataError, match=complaint) as caught:
        take(opened(stream, fetch, workers), 15)
    assert "Traceback" not in str(caught.value)
    assert re.search(rf"{stream.remote}/part-0000\d/.* .rows \d+ to \d+", str(caught.value))
    # Far from what a run may take, and far from how long the server stalls.
    assert time.monotonic() - started < 30


def test_a_shard_that_arrives_corrupt_is_fetched_once_more(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    stream = uploaded(faulty_s3.bucket, tmp_path)
    shard = shards_of(stream)[2].stored.basename
    right = (tmp_path / "local" / shard).read_bytes()
    faulty_s3.bucket.put(f"{PREFIX}/{shard}", right[:-1] + bytes([right[-1] ^ 1]))
    faulty_s3.proxy.rules.append(Rule(Stall(1), keys=f"*{shard}", nth=(2,)))

    def mend() -> None:
        wait_until(lambda: len(faulty_s3.proxy.requests("GET", f"*{shard}")) == 2)
        faulty_s3.bucket.put(f"{PREFIX}/{shard}", right)

    with ThreadPoolExecutor() as executor:
        mended = executor.submit(mend)
        training = opened(stream, PATIENT)
        assert_right(take(training, 15))
        mended.result()
    assert training.checked().files == SHARDS


def test_when_the_one_that_fetches_a_shard_is_killed_another_does_it(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    stream = uploaded(faulty_s3.bucket, tmp_path, shards=1)
    faulty_s3.proxy.rules.append(Rule(Stall(600), methods=("GET", "HEAD")))
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def read() -> None:
        world = join_world()
        training = TrainingStream([stream], plan(world.size), shuffle_seed=SHUFFLE_SEED, workers=0, fetch=LONG)
        assert_right([next(training.micro_batches(0))])

    def fetching() -> list[int]:
        return [int(claim.read_text()) for claim in temporary.rglob("0.claim") if claim.stat().st_size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", None)
        ranks = fork_two_ranks(read)
    wait_until(lambda: bool(fetching()))
    (fetches,) = fetching()
    (other,) = (process for process in ranks if process != fetches)
    faulty_s3.proxy.rules.clear()
    os.kill(fetches, signal.SIGKILL)
    assert statuses_of([fetches, other]) == [-signal.SIGKILL, 0]


def test_a_cache_smaller_than_the_dataset(s3: Bucket, tmp_path: Path) -> None:
    stream = uploaded(s3, tmp_path)
    limit = 4 * max(shard.raw_data.bytes for shard in shards_of(stream))
    training = opened(stream, FetchSection(cache_limit_gib=limit / GIB, retries=1, timeout_seconds=20), workers=2)
    seen = []
    for batch in islice(training.micro_batches(0), 15):
        assert_right([batch])
        seen += numbers([batch])
        assert cached_bytes(training, stream.local) <= limit
    assert sorted(seen) == list(range(60))
