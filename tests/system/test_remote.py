"""Object storage as a real server, well and ill: what is read and written is right, or it is said what is wrong."""

import gzip
import hashlib
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megaslm.errors import DataError
from megaslm.storage.remote import (
    RemoteSettings,
    describe_remote,
    list_remote,
    open_remote,
    read_bytes,
)
from megaslm.storage.retries import NotThere
from megaslm.storage.uploads import upload_file, write_bytes
from tests.forks import wait_until
from tests.messages import Says
from tests.s3 import Answer, Bucket, FaultyS3, IgnoreRange, Reset, Rule, Stall, Trickle, Truncate

pytest.importorskip("s3fs")

CONTENT = random.Random(0).randbytes(1_000_000)
QUICK = RemoteSettings(attempts=6, timeout_seconds=1, block_bytes=100_000, first_wait_seconds=0.01)
FEW = RemoteSettings(attempts=3, timeout_seconds=0.5, block_bytes=100_000, first_wait_seconds=0.01)


@pytest.fixture
def stored(faulty_s3: FaultyS3) -> FaultyS3:
    """CONTENT behind the proxy."""
    faulty_s3.bucket.put("data/x.bin", CONTENT)
    return faulty_s3


def read_all(s3: FaultyS3, settings: RemoteSettings = QUICK) -> bytes:
    with open_remote(s3.bucket.url("data/x.bin"), len(CONTENT), settings) as file:
        return b"".join(iter(lambda: file.read(33_333), b""))


def test_files_are_listed_by_file_folder_and_glob(s3: Bucket) -> None:
    keys = ["c/a.jsonl.zst", "c/b c.jsonl.zst", "c/d/e/f.jsonl.zst", "c/d/g.txt", "c10/h.jsonl.zst"]
    for key in reversed(keys):
        s3.put(key, key.encode())
    s3.put("c/empty/", b"")

    def listed(url: str) -> list[str]:
        return [each.url.removeprefix(s3.url("")) for each in list_remote(s3.url(url))]

    assert listed("c") == listed("c/") == keys[:4]
    assert listed("c/a.jsonl.zst") == keys[:1]
    assert listed("c/*.zst") == keys[:2]
    assert listed("c/**/*.jsonl.zst") == keys[:3]
    assert listed("c*/?.jsonl.zst") == [keys[0], keys[4]]
    assert listed("c/d/[a-h].*") == [keys[3]]
    assert listed("c/none-*") == []
    assert [each.size for each in list_remote(s3.url("c"))] == [len(key) for key in keys[:4]]


def test_a_version_changes_with_the_content_and_a_listing_is_never_stale(s3: Bucket) -> None:
    s3.put("c/x", b"one")
    first = list_remote(s3.url("c"))
    assert first == [describe_remote(s3.url("c/x"))] == list_remote(s3.url("c/x"))
    s3.put("c/x", b"two")
    s3.put("c/y", b"")
    second = list_remote(s3.url("c"))
    assert [each.url for each in second] == [s3.url("c/x"), s3.url("c/y")]
    assert second[0].size == first[0].size
    assert second[0].version != first[0].version
    # One connection for listing and looking.
    once = RemoteSettings(attempts=1)
    assert list_remote(s3.url("c"), once) == second
    s3.put("c/x", b"three")
    assert describe_remote(s3.url("c/x"), once).size == 5
    s3.delete("c/x")
    assert [each.url for each in list_remote(s3.url("c"))] == [s3.url("c/y")]


def test_what_is_not_there_is_named(s3: Bucket, says: Says) -> None:
    for url in (s3.url("none"), s3.url("none/x"), "s3://no-such-bucket-here/x", "s3://no-such-bucket-here/*"):
        with pytest.raises(NotThere) as refused:
            list_remote(url)
        assert str(refused.value).startswith(url)
    with pytest.raises(NotThere):
        read_bytes(s3.url("none"))
    with pytest.raises(NotThere), open_remote(s3.url("none"), 10) as file:
        file.read()
    with pytest.raises(NotThere) as refused:
        write_bytes("s3://no-such-bucket-here/x", b"x")
    says(refused, "s3://no-such-bucket-here/x: ")
    s3.put("folder/x", b"x")
    with pytest.raises(DataError) as refused:
        describe_remote(s3.url("folder"))
    says(refused, s3.url("folder"), BUCKET=s3.name)


def test_reading_moves_each_byte_once(stored: FaultyS3) -> None:
    assert read_all(stored) == CONTENT
    gets = stored.proxy.requests("GET")
    assert [each.range for each in gets] == [f"bytes={at}-{at + 99_999}" for at in range(0, 1_000_000, 100_000)]
    # The store counts what it has sent, a moment after it has come here.
    wait_until(lambda: sum(each.sent_bytes for each in gets) >= len(CONTENT))
    assert sum(each.sent_bytes for each in gets) == len(CONTENT)
    assert len(stored.proxy.seen) == len(gets)


@pytest.mark.parametrize(
    "fault", [Answer(500), Answer(503, "SlowDown"), Truncate(12_345), Truncate(0), Reset()], ids=str
)
def test_faults_that_pass_leave_the_content_right(stored: FaultyS3, fault: Answer | Truncate | Reset) -> None:
    stored.proxy.rules.append(Rule(fault, nth=(2, 3, 7)))
    assert read_all(stored) == CONTENT
    assert stored.proxy.faults == 3
    assert len(stored.proxy.seen) >= 13


@pytest.mark.parametrize("after_bytes", [None, 0, 70_000])
def test_a_stall_is_not_waited_for(stored: FaultyS3, after_bytes: int | None) -> None:
    stored.proxy.rules.append(Rule(Stall(60, after_bytes), nth=(2,)))
    began = time.monotonic()
    assert read_all(stored) == CONTENT
    assert time.monotonic() - began < 30
    assert stored.proxy.faults == 1


def test_a_trickle_is_not_waited_for(stored: FaultyS3) -> None:
    stored.proxy.rules.append(Rule(Trickle(bytes_per_second=1_000), nth=(2,)))
    began = time.monotonic()
    assert read_all(stored) == CONTENT
    assert time.monotonic() - began < 30
    assert stored.proxy.faults == 1


def test_memory_holds_blocks_and_not_the_file(s3: Bucket) -> None:
    s3.put("large", CONTENT * 8)
    with open_remote(s3.url("large"), 8 * len(CONTENT), QUICK) as file:
        file.read(1)
        tracemalloc.start()
        while file.read(50_000):
            pass
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 10 * QUICK.block_bytes


def test_a_fifth_of_all_requests_fails(stored: FaultyS3) -> None:
    methods = ("GET", "HEAD", "PUT", "POST")
    stored.proxy.rules += [
        Rule(Answer(500), methods, fraction=0.2, seed=1),
        Rule(Answer(503, "SlowDown"), methods, fraction=0.05, seed=2),
        Rule(Truncate(1_000), fraction=0.1, seed=3),
    ]
    for _ in range(3):
        assert read_all(stored) == CONTENT
    for number in range(8):
        write_bytes(stored.bucket.url(f"written/{number}"), CONTENT[: number * 1000], QUICK)
    assert len(list_remote(stored.bucket.url("written"), QUICK)) == 8
    assert all(stored.bucket.get(f"written/{number}") == CONTENT[: number * 1000] for number in range(8))
    assert stored.proxy.faults > 10


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Answer(500), "planted"),
        (Truncate(500), "failed 3 times"),
        (Stall(20), "Timeout"),
        (Stall(20, after_bytes=10), "Timeout"),
    ],
    ids=str,
)
def test_faults_that_stay_end_in_bounded_time(stored: FaultyS3, fault: Answer | Truncate | Stall, cause: str) -> None:
    stored.proxy.rules.append(Rule(fault))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"data/x\.bin, bytes 0 to 99999 of 1000000: failed 3 times") as failed:
        read_all(stored, FEW)
    assert cause in str(failed.value)
    # A client may find the connection closed that the fault before ended, and count that as an attempt.
    assert 2 <= len(stored.proxy.seen) <= 3
    assert time.monotonic() - began < 15


def test_refusals_are_not_tried_again(stored: FaultyS3, says: Says) -> None:
    stored.proxy.rules.append(Rule(Answer(403, "AccessDenied"), ("GET", "HEAD", "PUT")))
    asked: dict[str, Callable[[], object]] = {
        "data/x.bin": lambda: read_all(stored),
        "data": lambda: list_remote(stored.bucket.url("data")),
        "data/*": lambda: list_remote(stored.bucket.url("data/*")),
        "y": lambda: write_bytes(stored.bucket.url("y"), b"y"),
    }
    for name, ask in asked.items():
        with pytest.raises(DataError) as refused:
            ask()
        says(refused, stored.bucket.url(name), BUCKET=stored.bucket.name)
    assert len(stored.proxy.seen) == 4


def test_a_listing_that_fails_is_no_shorter_listing(stored: FaultyS3) -> None:
    stored.proxy.rules.append(Rule(Answer(500)))
    for url in ("data", "data/*", "data/**"):
        with pytest.raises(DataError, match="failed 2 times"):
            list_remote(stored.bucket.url(url), RemoteSettings(attempts=2, timeout_seconds=1, first_wait_seconds=0.01))


def test_a_server_without_ranges_is_refused(stored: FaultyS3, says: Says) -> None:
    stored.proxy.rules.append(Rule(IgnoreRange()))
    with pytest.raises(DataError) as refused:
        read_all(stored)
    says(refused, "1000000 bytes", BUCKET=stored.bucket.name)
    assert len(stored.proxy.seen) == 1


def test_web_servers_are_read_by_ranges(faulty_s3: FaultyS3, says: Says) -> None:
    faulty_s3.bucket.put("x.bin", CONTENT, public=True)
    url = f"{faulty_s3.proxy.url}/{faulty_s3.bucket.name}/x.bin"
    found = describe_remote(url)
    assert found == list_remote(url)[0]
    assert (found.url, found.size) == (url, len(CONTENT))
    assert found.version == hashlib.md5(CONTENT).hexdigest()
    faulty_s3.proxy.rules += [Rule(Answer(503), nth=(2,)), Rule(Truncate(10), nth=(3,)), Rule(Stall(20, 7), nth=(4,))]
    with open_remote(url, found.size, QUICK) as file:
        assert file.read() == CONTENT
    assert faulty_s3.proxy.faults == 3
    faulty_s3.proxy.rules[:] = [Rule(IgnoreRange())]
    with open_remote(url, found.size, QUICK) as file:
        file.seek(700_000)
        with pytest.raises(DataError) as refused:
            file.read(10)
        says(refused, URL=url)
    # Nor is the whole of it loaded to find that out.
    faulty_s3.bucket.put("large.bin", CONTENT * 40, public=True)
    with open_remote(url.replace("x.bin", "large.bin"), 40 * len(CONTENT), QUICK) as file:
        assert file.read(10) == CONTENT[:10]
    assert faulty_s3.proxy.seen[-1].sent_bytes < 20 * len(CONTENT)
    faulty_s3.proxy.rules[:] = [Rule(Answer(403), ("GET", "HEAD"))]
    with pytest.raises(DataError) as refused, open_remote(url, found.size, QUICK) as file:
        file.read(10)
    says(refused, URL=url)
    with pytest.raises(DataError) as refused:
        describe_remote(url, QUICK)
    says(refused, URL=url)
    faulty_s3.proxy.rules[:] = [Rule(Answer(503), ("GET", "HEAD"), nth=(1, 2))]
    assert describe_remote(url, QUICK) == found


def test_a_file_shorter_than_planned_is_not_taken_for_whole(stored: FaultyS3) -> None:
    with open_remote(stored.bucket.url("data/x.bin"), len(CONTENT) + 10, FEW) as file:
        file.seek(950_000)
        with pytest.raises(DataError, match=r"bytes 950000 to 1000009 of 1000010: failed 3 times.*50000 of 50010"):
            file.read()


def test_uploads_are_proved(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    local = tmp_path / "shard.mds"
    local.write_bytes(CONTENT)
    upload_file(local, faulty_s3.bucket.url("a/shard.mds"), QUICK)
    assert faulty_s3.bucket.get("a/shard.mds") == CONTENT
    assert [each.method for each in faulty_s3.proxy.seen] == ["PUT", "HEAD"]
    faulty_s3.proxy.rules += [
        Rule(Answer(503, "SlowDown"), ("PUT",), nth=(1,)),
        Rule(Stall(20), ("PUT",), nth=(1,)),
        Rule(Reset(), ("PUT",), nth=(1,)),
        Rule(Answer(500), ("HEAD",), nth=(1,)),
    ]
    upload_file(
        local,
        faulty_s3.bucket.url("b/shard.mds"),
        RemoteSettings(attempts=6, timeout_seconds=2, first_wait_seconds=0.01),
    )
    assert faulty_s3.bucket.get("b/shard.mds") == CONTENT
    assert faulty_s3.proxy.faults == 4


def test_large_uploads_go_in_pieces_and_are_read_back(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaslm.storage.uploads._UPLOAD_PIECE_BYTES", 5 * 2**20)
    content = random.Random(1).randbytes(11 * 2**20)
    local = tmp_path / "shard.mds"
    local.write_bytes(content)
    faulty_s3.proxy.rules.append(Rule(Answer(500), ("PUT",), nth=(2,)))
    upload_file(local, faulty_s3.bucket.url("shard.mds"), RemoteSettings(first_wait_seconds=0.01))
    assert faulty_s3.bucket.get("shard.mds") == content
    assert sum(each.sent_bytes for each in faulty_s3.proxy.requests("GET")) == len(content)
    assert faulty_s3.bucket.unfinished_uploads() == 0


def test_an_upload_that_arrives_changed_is_refused(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    local = tmp_path / "x"
    local.write_bytes(b"what was meant")
    from s3fs import S3FileSystem

    async def flips(self: S3FileSystem, local: str, path: str, **options: object) -> None:
        await self._pipe_file(path, b"what was meanT")

    monkeypatch.setattr(S3FileSystem, "_put_file", flips)
    with pytest.raises(DataError) as refused:
        upload_file(local, s3.url("x"), FEW)
    says(refused, s3.url("x"), "3 times", BUCKET=s3.name)


def test_one_endpoint_variable_is_enough(stored: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("S3_ENDPOINT_URL", stored.proxy.url)
    assert read_bytes(stored.bucket.url("data/x.bin")) == CONTENT


def test_missing_credentials_are_named(stored: FaultyS3, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError) as refused:
        read_bytes(stored.bucket.url("data/x.bin"))
    says(refused, "AWS_ACCESS_KEY_ID", BUCKET=stored.bucket.name)
    assert not stored.proxy.seen


def test_parquet_and_gzip_read_through_the_store(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    rows = 2_000
    table = pyarrow.table({"text": [random.Random(row).randbytes(300).hex() for row in range(rows)]})
    parquet.write_table(table, tmp_path / "x", row_group_size=rows // 10, compression="none", use_dictionary=False)
    faulty_s3.bucket.put("x.parquet", (tmp_path / "x").read_bytes())
    faulty_s3.bucket.put("x.jsonl.gz", gzip.compress(b"line\n" * 100_000))
    url = faulty_s3.bucket.url("x.parquet")
    with open_remote(url, describe_remote(url).size, QUICK) as file, parquet.ParquetFile(file) as source:
        before = sum(each.sent_bytes for each in faulty_s3.proxy.seen)
        assert source.read_row_group(4) == table.slice(4 * rows // 10, rows // 10)
        moved = sum(each.sent_bytes for each in faulty_s3.proxy.seen) - before
        size = source.metadata.row_group(4).total_byte_size
    assert size <= moved <= size + 64 * 2**10 + QUICK.block_bytes
    url = faulty_s3.bucket.url("x.jsonl.gz")
    with open_remote(url, describe_remote(url).size, QUICK) as file, gzip.open(file) as lines:
        assert sum(1 for _ in lines) == 100_000


def test_a_forked_child_connects_anew(stored: FaultyS3) -> None:
    program = f"""
import hashlib, multiprocessing, sys
from megaslm.storage.remote import read_bytes

def digest(url):
    return hashlib.sha256(read_bytes(url)).hexdigest()

url = {stored.bucket.url("data/x.bin")!r}
here = digest(url)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(digest, [url] * 6) == [here] * 6
print(here)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd=root
    )
    assert done.stdout.strip() == hashlib.sha256(CONTENT).hexdigest()
