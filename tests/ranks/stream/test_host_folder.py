"""What the processes of a run share on a host: an epoch's order, written once, and a folder that goes with them."""

import os
import re
import resource
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from megaslm.errors import DataError
from megaslm.stream.host_folder import HostFolder
from megaslm.stream.order import RowOrder
from tests.forks import fork, statuses_of, wait_until
from tests.messages import Says

ORDER = RowOrder(((64, 64),), None, 8, 8, 0)


def expected(epoch: int) -> list[int]:
    numbers = np.empty(ORDER.rows_per_epoch, ORDER.dtype)
    ORDER.fill(epoch, numbers)
    return numbers.tolist()


def test_processes_that_want_an_order_at_once_get_one(tmp_path: Path) -> None:
    """Each of them tells by its inode which file it has read."""

    def read(number: int) -> None:
        host = HostFolder("run")
        assert host.order_of(ORDER, 2).tolist() == expected(2)
        (tmp_path / str(number)).write_text(str((host.path / "order-2").stat().st_ino))

    host = HostFolder("run")
    assert statuses_of([fork(lambda number=number: read(number)) for number in range(4)]) == [0] * 4
    assert len({(tmp_path / str(number)).read_text() for number in range(4)}) == 1
    assert [path.name for path in host.path.glob("order-?")] == ["order-2"]


def test_processes_at_different_epochs_do_not_disturb_one_another() -> None:
    def read(first: int) -> None:
        host = HostFolder("run")
        orders = [expected(epoch) for epoch in range(2)]
        for number in range(first, 200):
            assert host.order_of(ORDER, number % 2).tolist() == orders[number % 2]

    assert statuses_of([fork(lambda first=first: read(first)) for first in range(4)]) == [0] * 4


def test_an_order_that_is_mapped_stays_when_the_next_one_is_written() -> None:
    host = HostFolder("run")
    first = host.order_of(ORDER, 0)
    host.order_of(ORDER, 1)
    assert first.tolist() == expected(0)
    assert host.order_of(ORDER, 0).tolist() == expected(0)


def test_a_full_disk_is_an_error_by_name_and_leaves_the_order_unwritten(capfd: pytest.CaptureFixture[str]) -> None:
    def fill() -> None:
        host = HostFolder("run")
        host.require_room(ORDER, ORDER.rows_per_epoch)
        # A disk that ends within the file, as far as a process can tell.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ORDER.rows_per_epoch, resource.RLIM_INFINITY))
        try:
            host.order_of(ORDER, 0)
        finally:
            # What is said of it goes into a file.
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    host = HostFolder("run")
    assert statuses_of([fork(fill)]) == [2]
    assert str(host.path) in capfd.readouterr().err
    assert not (host.path / "order-0").exists()
    assert host.order_of(ORDER, 0).tolist() == expected(0)


def test_an_order_that_is_larger_than_the_disk_is_refused_beforehand(says: Says) -> None:
    large = RowOrder(((1 << 31,) * 4_000_000,), None, 8, 8, 0)
    host = HostFolder("run")
    with pytest.raises(DataError) as refused:
        host.require_room(large, large.rows_per_epoch)
    free = re.search(r"but ([\d,]+) MiB", str(refused.value))
    assert free is not None
    says(refused, "8,589,934,592,000,000", FREE=free[1], RUN=host.path)


@pytest.mark.parametrize(("orders_free", "epochs", "fits"), [(1.5, 1, True), (1.5, 2, False), (2.0, 2, True)])
def test_a_run_of_several_epochs_needs_room_for_two_orders(
    monkeypatch: pytest.MonkeyPatch, orders_free: float, epochs: int, fits: bool
) -> None:
    free = int(orders_free * ORDER.rows_per_epoch * ORDER.dtype.itemsize)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with nullcontext() if fits else pytest.raises(DataError, match="TMPDIR"):
        HostFolder("run").require_room(ORDER, epochs * ORDER.rows_per_epoch)


def test_an_order_keeps_its_space_while_a_process_maps_it() -> None:
    """So two of them take space at an epoch's end, though the folder shows one."""
    host = HostFolder("run")
    first = host.order_of(ORDER, 0)
    host.order_of(ORDER, 1)
    (line,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{host.path}/order-0" in line]
    assert line.endswith("(deleted)")
    assert first.tolist() == expected(0)


def test_a_folder_goes_with_its_last_holder_and_that_of_killed_ones_with_the_next_process(tmp_path: Path) -> None:
    def hold(number: int) -> None:
        host = HostFolder("killed")
        host.order_of(ORDER, 0)
        (tmp_path / f"held-{number}").touch()
        time.sleep(60)
        assert host.path.exists()

    host = HostFolder("mine")
    killed = [fork(lambda number=number: hold(number)) for number in range(2)]
    wait_until(lambda: len(list(tmp_path.glob("held-*"))) == 2)
    os.kill(killed[0], signal.SIGKILL)
    assert statuses_of(killed[:1]) == [-signal.SIGKILL]
    HostFolder("other")
    assert host.path.with_name("killed").exists()
    assert not host.path.with_name("other").exists()
    os.kill(killed[1], signal.SIGKILL)
    assert statuses_of(killed[1:]) == [-signal.SIGKILL]
    HostFolder("other")
    assert not host.path.with_name("killed").exists()
    assert host.path.exists()


def test_the_first_failure_stays() -> None:
    host, same = HostFolder("run"), HostFolder("run")
    assert host.failure() is None
    host.fail("one")
    same.fail("two")
    assert host.failure() == same.failure() == "one"


def test_a_folder_that_cannot_be_made_is_an_error_by_name(temporary: Path) -> None:
    (temporary / f"megaslm-{os.getuid()}").write_text("in the way")
    with pytest.raises(DataError, match="TMPDIR"):
        HostFolder("run")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder to another user")
def test_the_folder_of_another_user_is_not_trusted(temporary: Path, says: Says) -> None:
    folder = temporary / f"megaslm-{os.getuid()}"
    folder.mkdir()
    os.chown(folder, 12345, -1)
    with pytest.raises(DataError) as refused:
        HostFolder("run")
    says(refused, folder)


def test_what_was_killed_before_it_held_its_folder_goes_too(temporary: Path) -> None:
    left = temporary / f"megaslm-{os.getuid()}" / "left"
    left.mkdir(parents=True)
    HostFolder("run")
    assert not left.exists()


def test_a_cache_that_is_no_folder_is_an_error_by_name(temporary: Path, says: Says) -> None:
    (temporary / "cache").write_text("a file")
    with pytest.raises(DataError) as refused:
        HostFolder("run").claim_cache(temporary / "cache")
    says(refused, temporary / "cache")
