"""One job at a time in a run folder: a second one would take the first one's saves for its own leftovers."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megaslm.engine.distributed import World, on_first_rank
from megaslm.errors import ConfigError
from megaslm.jobs.locks import Busy, locked

_PATIENCE_SECONDS = 30.0
_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def alone_in(run_folder: Path, world: World, say: Callable[[str], None]) -> Iterator[None]:
    """Within the context no other job trains in the folder; called on all ranks.

    Waits half a minute for an attempt that is being killed. Where the file system has no locks, `say` is told so.

    Raises:
        ConfigError: another job goes on training in it.
    """
    with ExitStack() as held:
        for note in on_first_rank(lambda: list(take(run_folder, held, patience_seconds=_PATIENCE_SECONDS))):
            say(note)
        yield


def take(run_folder: Path, held: ExitStack, *, patience_seconds: float = 0.0) -> Iterator[str]:
    """Has `held` keep other jobs out of the folder; gives a warning where its file system has no locks.

    Raises:
        ConfigError: another job is in it, for longer than the patience.
    """
    # In the folder and not beside it, where a container has a file system of its own.
    run_folder.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(locked(run_folder / ".lock", patience_seconds=patience_seconds, busy="busy"))
    except Busy as error:
        raise ConfigError(
            f"run_dir = {run_folder}: another job is training in it; wait for its end, or choose another run_dir"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        yield f"warning: {run_folder}: this file system has no locks ({error}); see that one job at a time trains in it"
