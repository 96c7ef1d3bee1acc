"""Whether all ranks see one and the same folder, without which no checkpoint would ever be whole."""

import secrets
import socket
import time
from pathlib import Path

from megaslm.engine.distributed import World, gather_objects, on_first_rank, wait_for_all
from megaslm.errors import ConfigError

_PATIENCE_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 1.0


def check_shared(folder: Path, world: World) -> None:
    """Lets the first rank write a file and all others read it; called on all ranks.

    Raises:
        ConfigError: on all ranks, where one does not see it; the message names their hosts.
    """
    mark = on_first_rank(lambda: _leave_mark(folder))
    sees_it = _read(folder / mark) == mark
    blind = {host: None for host, sees in gather_objects((socket.gethostname(), sees_it)) if not sees}
    wait_for_all()
    if world.is_first:
        (folder / mark).unlink()
    if blind:
        raise ConfigError(
            f"run_dir: {folder} on {socket.gethostname() if world.is_first else 'the first host'} is not the folder of "
            f"that name on {', '.join(blind)}; run_dir must lie on a file system that all hosts share"
        )


def _leave_mark(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    mark = f".shared-{secrets.token_hex(8)}"
    (folder / mark).write_text(mark, encoding="utf-8")
    return mark


def _read(path: Path) -> str | None:
    """Tries for some time: a network file system remembers for half a minute that there was no such folder."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return path.read_text(encoding="utf-8")
        except OSError:
            if time.monotonic() > give_up:
                return None
        time.sleep(_LOOK_AGAIN_SECONDS)
