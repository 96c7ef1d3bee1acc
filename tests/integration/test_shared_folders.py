"""All ranks have to see one and the same run folder, and the start finds out whether they do."""

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from megaslm.engine.distributed import join_world, leave_world
from megaslm.engine.preflight.check import preflight
from megaslm.engine.preflight.demands import Demands
from megaslm.engine.preflight.shared_folders import unshared
from megaslm.engine.rank_names import Rank
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


def check_in_three_ranks(folder: Path, before: Callable[[int], None] = lambda rank: None) -> list[int]:
    """The exit statuses of ranks each of which does something else before."""

    def rank() -> None:
        before(int(os.environ["RANK"]))
        world = join_world()
        preflight(world, Demands(settings={}, shared_folders={"run_dir": folder}))
        leave_world()

    return statuses_of(fork_ranks(3, rank))


def assert_refused(folder: Path, blind: str, said: str) -> None:
    host = socket.gethostname()
    expected = f"  run_dir: {folder} of rank 0 on {host} is another folder than that of {blind} on {host}: run_dir must"
    assert said.count(expected) == 3, said
    assert said.count(" does not see what the first rank has written for run_dir, and looks for 0 s more\n") >= 1


@pytest.mark.parametrize("folder", [".", "not yet/there"])
def test_ranks_that_see_one_folder_go_on_and_leave_nothing_in_it(
    tmp_path: Path, folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check_in_three_ranks(tmp_path / folder) == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []
    assert "does not see" not in capfd.readouterr().err


@pytest.mark.parametrize(("covered", "blind"), [(0, "ranks 1-2"), (2, "rank 2")])
@pytest.mark.parametrize("is_there", [True, False])
def test_all_ranks_refuse_a_folder_that_one_does_not_see(
    tmp_path: Path, covered: int, blind: str, is_there: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    if statuses_of([fork(lambda: cover(tmp_path))]) != [0]:
        pytest.skip("this machine lets nobody have a mount of his own")
    folder = tmp_path / "run"
    if is_there:
        folder.mkdir()
    capfd.readouterr()
    assert check_in_three_ranks(folder, lambda rank: cover(tmp_path) if rank == covered else None) == [2, 2, 2]
    assert_refused(folder, blind, capfd.readouterr().err)
    assert list(tmp_path.rglob(".shared-*")) == []


def test_a_relative_folder_is_each_rank_s_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("a", "b", "a")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    assert check_in_three_ranks(Path("run"), lambda rank: os.chdir(folders[rank])) == [2, 2, 2]
    assert_refused(Path("run"), "rank 1", capfd.readouterr().err)
    assert list(tmp_path.rglob(".shared-*")) == []


@pytest.mark.parametrize(("powerless", "found"), [(0, ""), (1, "rank 1 on here: run_dir must")])
def test_a_rank_without_the_right_to_look_is_blind(
    tmp_path: Path, powerless: int, found: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where it is the first one, which cannot write either, whatever writes later says so."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    tmp_path.chmod(0o700)

    def rank() -> None:
        world = join_world()
        number = Rank(world.rank, "here")
        # What is imported on the way need not be readable for somebody else.
        assert unshared({"run_dir": tmp_path}, number, world) == []
        if world.rank == powerless:
            os.seteuid(65534)
        for finding in unshared({"run_dir": tmp_path / "run"}, number, world):
            print(finding.text)
        os.seteuid(0)
        leave_world()

    assert statuses_of(fork_ranks(2, rank)) == [0, 0]
    told = [line for line in capfd.readouterr().out.splitlines() if "run_dir" in line]
    assert len(told) == (2 if found else 0)
    assert all(found in line for line in told)
    assert list(tmp_path.rglob(".shared-*")) == []


def test_a_folder_into_which_nothing_can_be_written_is_passed_over() -> None:
    assert check_in_three_ranks(Path("/proc/self/run")) == [0, 0, 0]
