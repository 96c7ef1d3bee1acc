"""What runs leave that are killed with all their processes goes with the next one; neighbours keep what they have."""

import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest

from megaslm.config.schema import FetchSection
from megaslm.engine.distributed import join_world
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import MixtureStream
from tests.forks import fork, fork_two_ranks, statuses_of, wait_until
from tests.messages import Says, line_with
from tests.streams import SHUFFLE_SEED, assert_right, fetched, plan, take, write_stream

FETCH = FetchSection(retries=0, timeout_seconds=20)
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the processes that are forked here."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def opened(stream: MixtureStream, workers: int, world_size: int = 1) -> TrainingStream:
    return TrainingStream([stream], plan(world_size), shuffle_seed=SHUFFLE_SEED, workers=workers, fetch=FETCH)


def read_on(stream: MixtureStream, said: Path, *, ranks: int = 1) -> None:
    """Reads until it is killed, or its parent is."""
    world_size = join_world().size if ranks > 1 else 1
    for number, batch in enumerate(opened(stream, 2, world_size).micro_batches(0), start=1):
        assert_right([batch])
        said.write_text(str(number))
        time.sleep(0.005)
        if os.getppid() == 1:
            return


def read_two_epochs(stream: MixtureStream) -> None:
    assert_right(take(opened(stream, 2, join_world().size), 14))


def folders(temporary: Path) -> set[str]:
    return {path.parent.name for path in temporary.glob("megaslm-*/*/held")}


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_leave_nothing_and_neighbours_keep_what_is_theirs(tmp_path: Path, temporary: Path, kills: int) -> None:
    stream = fetched(write_stream(tmp_path / "a", shards=6), tmp_path / "cache")
    theirs = write_stream(tmp_path / "theirs", shards=2)
    before = set(SHARED_MEMORY.iterdir())
    neighbour = fork(lambda: read_on(theirs, tmp_path / "neighbour"))
    wait_until((tmp_path / "neighbour").exists)
    (their_folder,) = folders(temporary)
    pause = random.Random(0)
    for number in range(kills):
        said = tmp_path / f"run-{number}"
        ranks = 2 if number % 4 == 3 else 1
        if ranks == 2:
            run = fork_two_ranks(lambda said=said: read_on(stream, said, ranks=2))
        else:
            run = [fork(lambda said=said: read_on(stream, said))]
        if number % 2:
            wait_until(said.exists)
        time.sleep(pause.uniform(0, 0.2))
        os.killpg(run[0], signal.SIGKILL)
        assert statuses_of(run) == [-signal.SIGKILL] * ranks
    assert statuses_of(fork_two_ranks(lambda: read_two_epochs(stream))) == [0, 0]
    assert folders(temporary) == {their_folder}
    assert set(SHARED_MEMORY.iterdir()) <= before
    read_before = int((tmp_path / "neighbour").read_text() or 0)
    wait_until(lambda: int((tmp_path / "neighbour").read_text() or 0) > read_before)
    os.killpg(neighbour, signal.SIGKILL)
    os.waitpid(neighbour, 0)


def test_two_runs_do_not_fetch_into_one_cache(
    tmp_path: Path, temporary: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    stream = fetched(write_stream(tmp_path / "a", shards=2), tmp_path / "cache")
    first = fork(lambda: read_on(stream, tmp_path / "first"))
    wait_until((tmp_path / "first").exists)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megaslm.stream.host_folder._ORPHANS_SECONDS", 0.5)
        assert statuses_of([fork(lambda: read_on(stream, tmp_path / "second"))]) == [2]
    says(line_with(capfd.readouterr().err, f"{stream.local}: "))
    os.killpg(first, signal.SIGKILL)
    os.waitpid(first, 0)
    # Its loaders notice, and then the cache is free.
    assert statuses_of([fork(lambda: assert_right(take(opened(stream, 0), 4)))]) == [0]
