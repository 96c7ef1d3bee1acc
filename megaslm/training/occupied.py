"""Whether another job trains in a run's folder. Imports no torch: the command looks before its slow imports."""

import time
from collections.abc import Callable
from pathlib import Path

from megaslm.config.run_files import LOCK
from megaslm.errors import ConfigError
from megaslm.files import is_locked

PATIENCE_SECONDS = 30.0
"""For an attempt that is just ending, such as one whose job has been requeued."""
_LOOK_AGAIN_SECONDS = 0.1


def occupied(run_folder: Path) -> ConfigError:
    """The refusal of a start in a folder that another job does not leave."""
    return ConfigError(
        f"run_dir = {run_folder}: another job is training in it; wait for its end, or choose another run_dir"
    )


def waits(run_folder: Path, patience_seconds: float = PATIENCE_SECONDS) -> str:
    """What is said at once, before waiting for the other job."""
    return f"run_dir = {run_folder}: another job is training in it; waits up to {patience_seconds:.3g} s for its end"


def wait_until_free(
    run_folder: Path, say: Callable[[str], object], *, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Waits while another job trains in the folder. Takes no lock: this job may be one that only looks.

    Raises ConfigError where the other job has not left the folder after `patience_seconds`.
    """
    lock = run_folder / LOCK
    if not is_locked(lock):
        return
    say(waits(run_folder, patience_seconds))
    deadline = time.monotonic() + patience_seconds
    while is_locked(lock):
        if time.monotonic() >= deadline:
            raise occupied(run_folder)
        time.sleep(_LOOK_AGAIN_SECONDS)
