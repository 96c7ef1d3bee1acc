"""All ranks have to see one and the same run folder, and the start finds out whether they do."""

import ctypes
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megaslm.engine.distributed import World, join_world, leave_world
from megaslm.health.shared_folders import require_shared
from megaslm.scoring.job import score
from tests.forks import fork, fork_ranks, statuses_of
from tests.messages import Says, lines_with
from tests.scoring import make_reference, task_of
from tests.toy import make_dataset

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
    monkeypatch.setattr("megaslm.health.shared_folders._PATIENCE_SECONDS", 0.0)


def check_in_three_ranks(folder: Path, before: Callable[[int], None] = lambda rank: None) -> list[int]:
    """The exit statuses of ranks each of which does something else before."""

    def rank() -> None:
        world = join_world()
        before(world.rank)
        require_shared(folder, "run_dir", world)
        leave_world()

    return statuses_of(fork_ranks(3, rank))


def require_refused(folder: Path, blind: str, said: str, says: Says) -> None:
    host = socket.gethostname()
    # Ranks write at the same moment, so that one line may hold what two of them said.
    told = min(lines_with(said, f"run_dir: {folder} of rank 0 on {host} ", f" {blind} on {host}; "), key=len)
    assert said.count(told) == 3, said
    says(told, HOST=host)
    waiting = {line.strip() for line in re.split(r"(?=rank \d on )", said.replace(told, "\n")) if line.strip()}
    says("\n".join(sorted(waiting)), "run_dir", " 0 s ", HOST=host)


def test_ranks_that_see_one_folder_go_on_and_leave_nothing_in_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check_in_three_ranks(tmp_path) == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []
    assert "run_dir" not in capfd.readouterr().err


@pytest.mark.parametrize(("covered", "blind"), [(0, "ranks 1-2"), (2, "rank 2")])
def test_all_ranks_refuse_a_folder_that_one_does_not_see(
    tmp_path: Path, covered: int, blind: str, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    if statuses_of([fork(lambda: cover(tmp_path))]) != [0]:
        pytest.skip("this machine lets nobody have a mount of his own")
    capfd.readouterr()
    assert check_in_three_ranks(tmp_path, lambda rank: cover(tmp_path) if rank == covered else None) == [2, 2, 2]
    require_refused(tmp_path, blind, capfd.readouterr().err, says)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_is_that_of_each_rank(tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says) -> None:
    folders = [tmp_path / name for name in ("a", "b", "a")]
    for folder in folders:
        (folder / "run").mkdir(parents=True, exist_ok=True)
    assert check_in_three_ranks(Path("run"), lambda rank: os.chdir(folders[rank])) == [2, 2, 2]
    require_refused(Path("run"), "rank 1", capfd.readouterr().err, says)
    assert list(tmp_path.rglob(".shared-*")) == []


def test_a_rank_without_the_right_to_look_does_not_see_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    tmp_path.chmod(0o700)

    def become_somebody_else(rank: int) -> None:
        if rank == 1:
            # What is imported on the way need not be readable for them.
            require_shared(tmp_path, "run_dir", World(0, 1, torch.device("cpu")))
            os.seteuid(65534)

    assert check_in_three_ranks(tmp_path, become_somebody_else) == [2, 2, 2]
    require_refused(tmp_path, "rank 1", capfd.readouterr().err, says)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_into_which_the_first_rank_cannot_write_ends_all(capfd: pytest.CaptureFixture[str]) -> None:
    assert 0 not in check_in_three_ranks(Path("/proc/self"))
    assert "/proc/self/.shared-" in capfd.readouterr().err


def test_a_scoring_whose_ranks_have_unlike_outputs_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    """A relative path stands for a disk that each host has."""
    make_dataset(tmp_path / "tokens", {("train", "a"): [20]})
    make_reference(tmp_path / "reference")
    (tmp_path / "other").mkdir()

    def rank() -> None:
        os.chdir(tmp_path / ("other" if os.environ["RANK"] == "1" else "."))
        score(task_of(tmp_path / "reference", tmp_path / "tokens", Path("scored")))

    assert statuses_of(fork_ranks(2, rank)) == [2, 2]
    told = min(lines_with(capfd.readouterr().err, "output: scored/.score/", "rank 0", "rank 1"), key=len)
    says(told, HOST=socket.gethostname())
    assert list(tmp_path.rglob(".shared-*")) == []
