"""All ranks have to see one and the same run folder, and the start finds out whether they do."""

import ctypes
import os
import socket
from pathlib import Path

import pytest

from megaslm.engine.distributed import join_world, leave_world
from megaslm.engine.preflight.check import preflight
from megaslm.engine.preflight.demands import Demands
from tests.forks import fork, fork_ranks, statuses_of

# Of <sched.h> and <sys/mount.h>.
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
LIBC = ctypes.CDLL(None, use_errno=True)


def cover(folder: Path) -> None:
    """Lays an empty folder over this one, for this process alone: so a host sees it on which it is not mounted."""
    succeed(LIBC.unshare(CLONE_NEWNS if os.geteuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER))
    succeed(LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    succeed(LIBC.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, None))


def succeed(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaslm.engine.preflight.shared_folders._PATIENCE_SECONDS", 0.0)


def check_in_three_ranks(folder: Path, *, blind: int | None = None) -> list[int]:
    def rank() -> None:
        if os.environ["RANK"] == str(blind):
            cover(folder.parent)
        world = join_world()
        for line in preflight(world, Demands(settings={}, shared_folders={"run_dir": folder})):
            print(line)
        leave_world()

    return statuses_of(fork_ranks(3, rank))


@pytest.mark.parametrize("folder", [".", "not yet/there"])
def test_ranks_that_see_one_folder_go_on_and_leave_nothing_in_it(tmp_path: Path, folder: str) -> None:
    assert check_in_three_ranks(tmp_path / folder) == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("blind", [0, 2])
@pytest.mark.parametrize("is_there", [True, False])
def test_all_ranks_refuse_a_folder_that_one_does_not_see(
    tmp_path: Path, blind: int, is_there: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    if statuses_of([fork(lambda: cover(tmp_path))]) != [0]:
        pytest.skip("this machine lets nobody have a mount of his own")
    folder = tmp_path / "run"
    if is_there:
        folder.mkdir()
    capfd.readouterr()
    assert check_in_three_ranks(folder, blind=blind) == [2, 2, 2]
    said = capfd.readouterr().err
    host = socket.gethostname()
    # Where the first rank is the blind one, `run` is not there for it.
    mark_is_in = folder if is_there and blind != 0 else tmp_path
    others = "ranks 1-2" if blind == 0 else "rank 2"
    expected = (
        f"  run_dir: {mark_is_in} of rank 0 on {host} is another folder than that of {others} on {host}: run_dir must"
    )
    assert said.count(expected) == 3, said
    assert list(tmp_path.rglob(".shared-*")) == []


def test_a_folder_into_which_nothing_can_be_written_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert check_in_three_ranks(Path("/proc/self/run")) == [2, 2, 2]
    expected = f"  run_dir: rank 0 on {socket.gethostname()} cannot write into /proc/self (No such file or directory): "
    assert capfd.readouterr().err.count(expected) == 3
