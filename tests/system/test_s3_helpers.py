"""The S3 server and the proxy of the tests do what the tests rely on, as boto3 and plain HTTP see them."""

import http.client
import urllib.error
import urllib.parse
import urllib.request

import pytest

from tests.s3 import AUTHORIZATION, Answer, FaultyS3, IgnoreRange, Reset, Rule, Stall, Truncate

CONTENT = bytes(range(256)) * 800


def get(s3: FaultyS3, key: str = "a/b c.bin", timeout_seconds: float = 10, **headers: str) -> bytes:
    url = f"{s3.proxy.url}/{s3.bucket.name}/{urllib.parse.quote(key)}"
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers | AUTHORIZATION), timeout=timeout_seconds
    ) as answer:
        body: bytes = answer.read()
    return body


@pytest.fixture
def stored(faulty_s3: FaultyS3) -> FaultyS3:
    faulty_s3.bucket.put("a/b c.bin", CONTENT)
    return faulty_s3


def test_boto3_works_through_the_proxy(stored: FaultyS3) -> None:
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3")
    name = stored.bucket.name
    client.put_object(Bucket=name, Key="x", Body=b"hello")
    client.create_multipart_upload(Bucket=name, Key="y")
    ranged = client.get_object(Bucket=name, Key="a/b c.bin", Range="bytes=100-299")
    assert ranged["Body"].read() == CONTENT[100:300]
    assert client.head_object(Bucket=name, Key="a/b c.bin")["ContentLength"] == len(CONTENT)
    assert stored.bucket.get("x") == b"hello"
    assert stored.bucket.stored_keys() == ["a/b c.bin", "x"]
    assert stored.bucket.unfinished_uploads() == 1
    assert [seen.method for seen in stored.proxy.seen] == ["PUT", "POST", "GET", "HEAD"]
    assert stored.proxy.requests("GET")[0].sent_bytes == 200


def test_each_fault_is_what_it_says(stored: FaultyS3) -> None:
    rules = stored.proxy.rules
    rules[:] = [Rule(Answer(503, "SlowDown"), nth=(1,))]
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(stored)
    assert refused.value.code == 503
    assert get(stored) == CONTENT
    rules[:] = [Rule(Truncate(70_000))]
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(stored)
    assert cut.value.partial == CONTENT[:70_000]
    rules[:] = [Rule(Stall(30))]
    with pytest.raises(TimeoutError):
        get(stored, timeout_seconds=0.3)
    rules[:] = [Rule(Stall(30, after_bytes=70_000))]
    with pytest.raises(TimeoutError):
        get(stored, timeout_seconds=0.3)
    rules[:] = [Rule(IgnoreRange())]
    assert get(stored, Range="bytes=0-9") == CONTENT
    rules[:] = [Rule(Reset())]
    with pytest.raises(http.client.RemoteDisconnected):
        get(stored)
    assert stored.proxy.faults == 6


def test_a_fraction_is_the_same_each_time(stored: FaultyS3) -> None:
    def pattern() -> list[bool]:
        rule = Rule(Answer(500), fraction=0.3, seed=5, keys="*/a/*")
        return [rule.strikes("GET", f"bucket/{folder}/x") for folder in "ab" * 50]

    assert pattern() == pattern()
    assert 5 <= sum(pattern()) <= 25
    assert not any(pattern()[1::2])
