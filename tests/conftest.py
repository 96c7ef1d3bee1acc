"""Fixtures for all tests: object storage as a real server on this machine, and how messages read."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.messages import Messages, says
from tests.s3 import Bucket, FaultyProxy, FaultyS3, can_serve_s3, s3_environment, s3_server

# How long an example takes says something of the machine alone.
settings.register_profile("megaslm", deadline=None)
settings.load_profile("megaslm")

__all__ = ["says"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite-messages` keeps what is said instead of comparing it."""
    parser.addoption("--rewrite-messages", action="store_true", help="write the messages.txt of each folder anew")


def pytest_configure(config: pytest.Config) -> None:
    """Messages are kept by one process."""
    if config.getoption("--rewrite-messages") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--rewrite-messages: writes the messages of one process; leave --numprocesses away")
    config.pluginmanager.register(Messages(config), Messages.NAME)


@pytest.fixture(scope="session")
def s3_endpoint_url() -> Iterator[str]:
    """An S3 server for the whole session; skips where moto is not installed."""
    if not can_serve_s3():
        pytest.skip("moto[server] and boto3 are not installed")
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, and the environment in which libraries and child processes find it."""
    _set_environment(monkeypatch, s3_endpoint_url)
    return Bucket.create(s3_endpoint_url)


@pytest.fixture
def faulty_s3(s3_endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """An empty bucket that libraries and child processes find behind a proxy; append to `proxy.rules`."""
    proxy = FaultyProxy(s3_endpoint_url)
    _set_environment(monkeypatch, proxy.url)
    try:
        yield FaultyS3(Bucket.create(s3_endpoint_url), proxy)
    finally:
        proxy.close()


def _set_environment(monkeypatch: pytest.MonkeyPatch, endpoint_url: str) -> None:
    monkeypatch.delenv("S3_ENDPOINT_URL", raising=False)
    for name, value in s3_environment(endpoint_url).items():
        monkeypatch.setenv(name, value)
