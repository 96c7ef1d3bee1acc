"""Checks that all ranks see the same folder. Otherwise checkpoints are incomplete and scores are not found.

Ranks exchange JSON here and unpickle nothing, because they do not know yet whether they fit together.
"""

import secrets
import socket
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import TypeAdapter

from megaslm.engine.distributed import World, all_gather, gather_objects, on_first_rank
from megaslm.engine.rank_names import Rank, name_ranks
from megaslm.errors import PreflightError
from megaslm.files import Busy, locked

T = TypeVar("T")
# NFS may remember for this long that a file was missing (acdirmax).
_PATIENCE_SECONDS = 65.0
_LOOK_AGAIN_SECONDS = 1.0


def exchange(value: T, device: torch.device) -> list[T]:
    """The dataclass of every rank, in rank order, on every rank; called on all ranks with one type."""
    adapter = TypeAdapter(type(value))
    own = torch.frombuffer(bytearray(adapter.dump_json(value)), dtype=torch.uint8).to(device)
    sizes: list[int] = all_gather(torch.tensor(len(own), device=device)).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    padded[: len(own)] = own
    texts = all_gather(padded).cpu().numpy()
    return [adapter.validate_json(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


@dataclass(frozen=True)
class _Sight:
    """Whether a rank sees the first rank's file."""

    rank: Rank
    sees_it: bool


def require_shared(folder: Path, name: str, world: World) -> None:
    """The first rank creates an empty file in a folder and all others look for it; called on all ranks.

    The file is called `.shared-…`, and stays only where the first rank is killed meanwhile.

    Args:
        folder: its path on each rank; it exists on the first one.
        name: its name in messages.
        world: all ranks.

    Raises:
        PreflightError: on all ranks, where one does not see the file; the message names these ranks and their hosts.
        OSError: the first rank cannot write there. `PeerFailed` on the others.
    """
    if world.size == 1:
        return
    own = Rank(world.rank, socket.gethostname())
    mark = folder / on_first_rank(lambda: _leave_mark(folder))
    try:
        sights = exchange(_Sight(own, _sees(mark, name, own)), world.device)
    finally:
        if world.is_first:
            with suppress(OSError):
                mark.unlink()
    blind = [sight.rank for sight in sights if not sight.sees_it]
    if blind:
        raise PreflightError(
            f"{name}: {folder} of {name_ranks([sights[0].rank])} is another folder than that of {name_ranks(blind)}; "
            f"{name} must lie on a file system that all hosts share"
        )


def _leave_mark(folder: Path) -> str:
    mark = f".shared-{secrets.token_hex(8)}"
    (folder / mark).touch(exist_ok=False)
    return mark


def _sees(mark: Path, name: str, own: Rank) -> bool:
    """Looks repeatedly, because a network file system remembers for a while that the folder was missing."""
    give_up: float | None = None
    while not _is_there(mark):
        if give_up is None:
            give_up = time.monotonic() + _PATIENCE_SECONDS
            print(
                f"{name_ranks([own])} does not see what the first rank has left in {name}, and looks for "
                f"{_PATIENCE_SECONDS:.0f} s more",
                file=sys.stderr,
                flush=True,
            )
        elif time.monotonic() > give_up:
            return False
        time.sleep(_LOOK_AGAIN_SECONDS)
    return True


def _is_there(mark: Path) -> bool:
    try:
        return mark.exists()
    except OSError:  # No permission to look there.
        return False


def locks_hold(folder: Path, world: World) -> bool:
    """Whether a lock that the first rank holds in a folder excludes the ranks of other hosts too.

    Called on all ranks. The locked file belongs to this job, because another job may hold the lock of a shared one.
    """
    with ExitStack() as held:

        def hold() -> str:
            name = f".locked-{secrets.token_hex(6)}"
            held.enter_context(locked(folder / name, busy=f"{folder / name} is locked by another process"))
            return name

        path = folder / on_first_rank(hold)
        got_it = not world.is_first and _can_lock(path)
        holds = not any(gather_objects(got_it))
    if world.is_first:
        path.unlink(missing_ok=True)
    return holds


def _can_lock(path: Path) -> bool:
    try:
        with locked(path, busy=""):
            return True
    except Busy:
        return False
