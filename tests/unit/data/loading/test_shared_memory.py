"""What is removed from shared memory: what a lease that nobody holds calls its own, and nothing else."""

import fcntl
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from megaslm.data.loading.shared_memory import remove_ownerless

SHARED_MEMORY = Path("/dev/shm")
OBJECTS = ("locals", "shard_states", "epoch_data", "megaslm_shards")


class Remains:
    """What a run with a prefix of its own has left."""

    def __init__(self, temporary: Path) -> None:
        self.prefix = 900_000 + os.getpid() % 100_000
        self.lease = SHARED_MEMORY / f"megaslm-stream-{os.getuid()}-{self.prefix:06}.lease"
        self.objects = [SHARED_MEMORY / f"{self.prefix:06}_{name}" for name in OBJECTS]
        self.lock_file = temporary / f"{self.prefix:06}_cache_filelock"
        for path in (*self.objects, self.lock_file):
            path.write_bytes(b"content")
        self.temporary = temporary

    def note(self, owner_inode: int | None) -> None:
        self.lease.write_text(json.dumps({"temporary_files": str(self.temporary), "owner_inode": owner_inode}))

    def there(self) -> list[str]:
        return [path.name.partition("_")[2] for path in (*self.objects, self.lock_file) if path.exists()]


@pytest.fixture
def remains(tmp_path: Path) -> Iterator[Remains]:
    remains = Remains(tmp_path)
    yield remains
    for path in (remains.lease, *remains.objects):
        path.unlink(missing_ok=True)


ALL = [*OBJECTS, "cache_filelock"]


def test_what_a_killed_run_left_goes(remains: Remains) -> None:
    remains.note(remains.objects[0].stat().st_ino)
    remove_ownerless()
    assert remains.there() == []
    assert not remains.lease.exists()


def test_what_a_living_run_holds_stays(remains: Remains) -> None:
    remains.note(remains.objects[0].stat().st_ino)
    with remains.lease.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        remove_ownerless()
    assert remains.there() == ALL
    assert remains.lease.exists()


def test_objects_without_a_lease_stay(remains: Remains) -> None:
    remove_ownerless()
    assert remains.there() == ALL


def test_objects_that_another_program_has_made_since_stay(remains: Remains) -> None:
    remains.note(remains.objects[0].stat().st_ino + 1)
    remove_ownerless()
    assert remains.there() == ALL
    assert not remains.lease.exists()


def test_what_a_run_left_that_was_killed_while_it_opened_goes(remains: Remains) -> None:
    remains.note(None)
    remove_ownerless()
    assert remains.there() == []


def test_objects_in_use_stay_where_the_lease_does_not_say_whose_they_are(remains: Remains) -> None:
    remains.note(None)
    with remains.objects[0].open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
        remove_ownerless()
    assert remains.there() == ALL


def test_a_lease_that_says_nothing_yet_has_no_objects(remains: Remains) -> None:
    remains.lease.touch()
    remove_ownerless()
    assert remains.there() == ALL
    assert not remains.lease.exists()
