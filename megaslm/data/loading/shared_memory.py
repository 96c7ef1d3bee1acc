"""What a run's stream keeps in the shared memory of its host, and when it is nobody's any more.

Streaming leaves its objects there when all processes of a run are killed, and refuses their cache to the next run. So
a run holds a lease: a file beside the objects that each of its processes keeps locked. A lease that nobody holds tells
whose objects may go. Objects without a lease belong to other programs.
"""

import atexit
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from time import monotonic, sleep

import torch.distributed as dist

from megaslm.data.loading.loader_process import without_signals
from megaslm.data.loading.mixture import MixtureStream
from megaslm.data.loading.shard_board import BOARD_OBJECTS
from megaslm.data.loading.training_rows import TrainingRows
from megaslm.data.stream import LOCALS, LOCK_FILES, SHARED_OBJECTS, free_prefix, shared_name
from megaslm.errors import DataError

_SHARED_MEMORY = Path("/dev/shm")
# Containers that share the memory need not share a folder for temporary files, so that lock and leases lie in it too.
_OURS = f"megaslm-stream-{os.getuid()}"
_HOST_LOCK = _SHARED_MEMORY / f"{_OURS}.lock"
# A loader process whose rank was killed notices within 5 seconds; until then it holds the lease.
_ORPHANS_SECONDS = 15.0
_POLL_SECONDS = 0.5
_NOTE_BYTES = 8192


def open_leased(streams: Sequence[MixtureStream], open_rows: Callable[[], TrainingRows]) -> TrainingRows:
    """Opens the rows of `streams` under a lease, after what killed runs left on this host is gone.

    Called on all ranks, contains barriers. One job opens at a time on a host: streaming numbers the shared memory of a
    job by what is free when each of its ranks looks, and would else give two jobs one number. The lease ends with the
    processes that hold it.

    Raises:
        DataError: another run on this host fetches into the folder of one of the streams.
    """
    # Python's own keeper of shared memory ignores a SIGTERM to all processes of a job, but would die of a SIGUSR1.
    with without_signals():
        resource_tracker.ensure_running()
    lease = _Lease()
    # Registered before streaming registers the like for its objects, and so called after it.
    atexit.register(lease.end, os.getpid())
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        _meet()
        rows = open_rows()
        _meet()
        lease.hold(rows.prefix)
        return rows
    with _alone_on_this_host():
        lease.hold(_coming_prefix(streams))
        lease.note(_Note(tempfile.gettempdir(), None))
        _meet()
        rows = open_rows()
        lease.move(rows.prefix)
        lease.note(_Note(tempfile.gettempdir(), _object(rows.prefix, LOCALS).stat().st_ino))
        _meet()
    return rows


def remove_ownerless() -> None:
    """Removes what runs of this user left in shared memory, and their lock files, where none of their processes lives.

    To be called by one process of the host at a time.
    """
    for path in sorted(_SHARED_MEMORY.glob(f"{_OURS}-*.lease")):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            # Its run has ended in this moment, and taken it along.
            continue
        _remove_if_ownerless(path, descriptor)
        os.close(descriptor)


class _Lease:
    """A process's hold on the objects with one prefix; loader processes inherit it."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._descriptor = -1

    def hold(self, prefix: int) -> None:
        """Holds the prefix until the process ends, however it ends."""
        self._path = _lease_path(prefix)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def note(self, note: "_Note") -> None:
        """Leaves word for who finds the lease with nobody to hold it."""
        content = json.dumps(asdict(note)).encode()
        os.pwrite(self._descriptor, content.ljust(_NOTE_BYTES), 0)

    def move(self, prefix: int) -> None:
        """Goes over to the prefix that streaming has taken."""
        assert self._path is not None, "a lease moves while it is held"
        self._path = self._path.rename(_lease_path(prefix))

    def end(self, process: int) -> None:
        """When `process`, which made this object, ends in order: the last one that holds the lease removes all."""
        if self._path is not None and process == os.getpid():
            _remove_if_ownerless(self._path, self._descriptor)


@dataclass(frozen=True)
class _Note:
    """What a lease says of its run."""

    temporary_files: str
    """The folder with the run's lock files."""
    owner_inode: int | None
    """Which object is the run's, as a name alone may change its owner; None while the run opens its streams."""

    @classmethod
    def read(cls, descriptor: int) -> "_Note | None":
        """What a lease says; None where its run was killed before it could say anything, or made anything."""
        content = os.pread(descriptor, _NOTE_BYTES, 0)
        return cls(**json.loads(content)) if content else None


def _coming_prefix(streams: Sequence[MixtureStream]) -> int:
    """The prefix that streaming takes next, once nothing ownerless stands in its way."""
    # As streaming spells them, which does not follow links.
    folders = [os.path.abspath(stream.local) for stream in streams]  # noqa: PTH100
    remotes = [stream.remote for stream in streams]
    give_up = monotonic() + _ORPHANS_SECONDS
    while True:
        remove_ownerless()
        try:
            return free_prefix(folders, remotes)
        except ValueError as error:
            if monotonic() > give_up:
                raise DataError(
                    f"another program on this host fetches into {' or '.join(folders)}; give each run a cache of its "
                    f"own, or wait for the other one to end"
                ) from error
        sleep(_POLL_SECONDS)


def _remove_if_ownerless(lease: Path, descriptor: int) -> None:
    """Removes a lease, opened as `descriptor`, and what is under it, unless it is held through another descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    prefix = int(lease.stem.removeprefix(f"{_OURS}-"))
    note = _Note.read(descriptor)
    if note is not None and _is_of_the_run(_object(prefix, LOCALS), note):
        for name in (*SHARED_OBJECTS, *BOARD_OBJECTS):
            _object(prefix, name).unlink(missing_ok=True)
        for name in LOCK_FILES:
            (Path(note.temporary_files) / shared_name(prefix, name)).unlink(missing_ok=True)
    lease.unlink(missing_ok=True)


def _is_of_the_run(owner: Path, note: _Note) -> bool:
    """Whether the objects with `owner` among them are those of the run that left `note`."""
    try:
        found = owner.stat()
    except FileNotFoundError:
        return True
    if note.owner_inode is not None:
        return found.st_ino == note.owner_inode
    # The run was killed while it opened its streams; what is in use now, another program has made since.
    return found.st_uid == os.getuid() and not _is_in_use(owner)


def _is_in_use(shared_object: Path) -> bool:
    """Whether a process that this one can look into has mapped it."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            content = maps.read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if f"{shared_object}\n" in content:
            return True
    return False


def _object(prefix: int, name: str) -> Path:
    return _SHARED_MEMORY / shared_name(prefix, name)


def _lease_path(prefix: int) -> Path:
    return _SHARED_MEMORY / f"{_OURS}-{prefix:06}.lease"


@contextmanager
def _alone_on_this_host() -> Iterator[None]:
    descriptor = _locked(_HOST_LOCK)
    try:
        yield
    finally:
        _HOST_LOCK.unlink()
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Opens and locks a file that its last owner removes while others wait for it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()
