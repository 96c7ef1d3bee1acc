"""What tests on two hosts share: the hosts, and the material of the fault tests."""

import shutil
from collections.abc import Iterator

import pytest

from tests.faults.conftest import figures, material, one_thread, undisturbed_run  # noqa: F401
from tests.multinode.host import why_there_are_none
from tests.multinode.hosts import Hosts


@pytest.fixture(scope="session")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """For the whole session; skips where this machine cannot have them."""
    if reason := why_there_are_none():
        pytest.skip(reason)
    with Hosts(tmp_path_factory.mktemp("hosts") / "settings") as hosts:
        yield hosts


@pytest.fixture
def hosts(two_hosts: Hosts) -> Iterator[Hosts]:
    """Both up and joined, with nothing that runs on them; so they are after the test again."""
    two_hosts.mend()
    yield two_hosts
    two_hosts.mend()


@pytest.fixture
def pdsh() -> None:
    """Skips without pdsh."""
    if shutil.which("pdsh") is None:
        pytest.skip("pdsh is missing: apt-get install pdsh")
