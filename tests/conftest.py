"""Fixtures for all tests: object storage as a real server on this machine, a corpus, a chain of runs, messages."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.messages import Messages, says
from tests.s3 import Bucket, FaultyProxy, FaultyS3, can_serve_s3, s3_environment, s3_server
from tests.shared_results import made_once

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

    from tests.chain import Chain

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
    # A shell starts background jobs with SIGINT ignored, which processes of tests would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the modules of tests import stays: no collection of garbage looks through it, here or in forked ranks."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """Tests run in parallel, each file on one worker."""
    from tests.scheduling import OneWorkerForAFile

    return OneWorkerForAFile(config, log)


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


# What takes seconds to import is imported where a test asks for it.


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.corpus import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run of one process makes of the corpus."""
    from megaslm.preparing.prepare import prepare
    from tests.corpus import recipe_of

    output = tmp_path_factory.mktemp("prepared") / "dataset"
    prepare(recipe_of(corpus), output, workers=1)
    return output


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Made once for all workers: tokens, a reference, scored tokens, an SLM run."""
    from tests.chain import Chain, make_chain

    return Chain(made_once(tmp_path_factory, "chain", make_chain))


def _set_environment(monkeypatch: pytest.MonkeyPatch, endpoint_url: str) -> None:
    monkeypatch.delenv("S3_ENDPOINT_URL", raising=False)
    for name, value in s3_environment(endpoint_url).items():
        monkeypatch.setenv(name, value)
