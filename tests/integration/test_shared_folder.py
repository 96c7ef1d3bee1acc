"""All ranks have to see one and the same run folder, and the start finds out whether they do."""

import ctypes
import os
import socket
from pathlib import Path

import pytest

from megaslm.engine.distributed import join_world, leave_world
from megaslm.training.checkpoints.shared_folder import check_shared
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
    monkeypatch.setattr("megaslm.training.checkpoints.shared_folder._PATIENCE_SECONDS", 0.0)


def check_in_three_ranks(folder: Path, *, blind: int | None = None) -> list[int]:
    def rank() -> None:
        if os.environ["RANK"] == str(blind):
            cover(folder)
        world = join_world()
        check_shared(folder, world)
        leave_world()

    return statuses_of(fork_ranks(3, rank))


def test_ranks_that_see_one_folder_go_on_and_leave_nothing_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "not yet there"
    assert check_in_three_ranks(folder) == [0, 0, 0]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("blind", [0, 2])
def test_all_ranks_refuse_a_folder_that_one_does_not_see(
    tmp_path: Path, blind: int, capfd: pytest.CaptureFixture[str]
) -> None:
    if statuses_of([fork(lambda: cover(tmp_path))]) != [0]:
        pytest.skip("this machine lets nobody have a mount of his own")
    capfd.readouterr()
    assert check_in_three_ranks(tmp_path, blind=blind) == [2, 2, 2]
    said = capfd.readouterr().err
    host = socket.gethostname()
    assert said.count(f"run_dir: {tmp_path} on ") == 3
    assert f"is not the folder of that name on {host}; run_dir must lie on a file system that all hosts share" in said
    assert list(tmp_path.iterdir()) == []
