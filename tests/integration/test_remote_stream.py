"""Shards that are fetched from an S3 server over HTTP, through a proxy that fails as a network does."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from megaslm.data.loading.fetch import FetchSettings
from megaslm.data.loading.loader import TrainingStream
from megaslm.data.loading.mixture import MixtureStream
from megaslm.errors import DataError
from tests.forks import wait_until
from tests.ranks import ROOT
from tests.s3 import Answer, Bucket, Fault, FaultyS3, Rule, Stall, Truncate
from tests.streams import (
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
PATIENT = FetchSettings(cache_limit_bytes=None, retries=3, timeout_seconds=20)
FEW_TRIES = FetchSettings(cache_limit_bytes=None, retries=1, timeout_seconds=60)
HASTY = FetchSettings(cache_limit_bytes=None, retries=1, timeout_seconds=2)


def uploaded(bucket: Bucket, folder: Path, *, shards: int = SHARDS, compression: str | None = None) -> MixtureStream:
    """A stream whose shards are in the bucket, and whose cache is empty."""
    stream = write_stream(folder / "local", shards, compression=compression)
    for shard in shards_of(stream):
        bucket.put(f"{PREFIX}/{shard.stored.basename}", (stream.local / shard.stored.basename).read_bytes())
    return fetched(stream, folder / "cache", remote=bucket.url(PREFIX))


def opened(stream: MixtureStream, fetch: FetchSettings, workers: int = 0) -> TrainingStream:
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
        Rule(Answer(500), methods=("HEAD",), nth=(1, 2, 3, 4, 5, 6)),
        Rule(Answer(503, "SlowDown"), fraction=0.3, seed=1),
        Rule(Stall(60), nth=(2,)),
        Rule(Stall(60, after_bytes=100), nth=(3,)),
        Rule(Truncate(after_bytes=100), nth=(1, 2, 5)),
    ],
    ids=["500", "500 at the client's every try", "503", "stall", "stall in the middle", "truncated"],
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
        (Answer(500), HASTY, "could not be fetched in 2 tries|not there after [2-4] seconds"),
        (Answer(404, "NoSuchKey"), FEW_TRIES, "could not be fetched in 2 tries, last: ClientError"),
        (Stall(60), HASTY, "not there after [2-4] seconds: process [0-9]+ is still fetching it; check the network"),
    ],
    ids=["500", "404", "stall"],
)
def test_faults_that_stay_end_the_run_by_the_name_of_the_shard(
    faulty_s3: FaultyS3, tmp_path: Path, fault: Fault, fetch: FetchSettings, complaint: str, workers: int
) -> None:
    stream = uploaded(faulty_s3.bucket, tmp_path)
    faulty_s3.proxy.rules.append(Rule(fault, methods=("GET", "HEAD")))
    started = time.monotonic()
    with pytest.raises(DataError, match=rf"{stream.remote}/part-0000\d/.* .rows \d+ to \d+.*({complaint})") as caught:
        take(opened(stream, fetch, workers), 15)
    assert "Traceback" not in str(caught.value)
    # Far from what a run may take, and far from how long the server stalls.
    assert time.monotonic() - started < 30


def test_a_shard_that_arrives_damaged_is_fetched_once_more(faulty_s3: FaultyS3, tmp_path: Path) -> None:
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
    assert training.checked().files == SHARDS + 1


@pytest.mark.slow
def test_a_rank_that_waits_for_one_that_was_killed_says_so(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    stream = uploaded(faulty_s3.bucket, tmp_path, shards=1)
    faulty_s3.proxy.rules.append(Rule(Stall(600), methods=("GET", "HEAD")))
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.integration.dead_downloader_worker"),
            *(str(stream.local), str(stream.remote), str(stream.rows)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["status of the other"] == 2, ran.stderr
    assert f"{stream.remote}/part-00000/shard.00000.mds (rows 0 to 9): process {found['downloader']} of" in ran.stderr
    assert "died while it made the shard ready" in ran.stderr


def test_a_cache_smaller_than_the_dataset(s3: Bucket, tmp_path: Path) -> None:
    stream = uploaded(s3, tmp_path)
    limit = 4 * max(shard.raw_data.bytes for shard in shards_of(stream))
    training = opened(stream, FetchSettings(limit, retries=1, timeout_seconds=20), workers=2)
    seen = []
    for batch in islice(training.micro_batches(0), 15):
        assert_right([batch])
        seen += numbers([batch])
        assert cached_bytes(training, stream.local) <= limit
    assert sorted(seen) == list(range(60))
