"""Whether all ranks see the same folders, without which no checkpoint would ever be whole, and no score ever found."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megaslm.engine.distributed import World, wait_for_all
from megaslm.engine.preflight.exchange import exchange
from megaslm.engine.preflight.findings import Finding
from megaslm.engine.rank_names import Rank, name_ranks

# NFS asks its server anew for what is in a folder that has changed not long ago after 30 s (acdirmin).
_PATIENCE_SECONDS = 35.0
_LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class _Marks:
    """What a rank has left for the others to find, by the names of the folders."""

    paths: dict[str, str]
    failures: dict[str, str]


@dataclass(frozen=True)
class _Sight:
    """The folders whose marks a rank does not see."""

    rank: Rank
    unseen: list[str]


def unshared(folders: Mapping[str, Path], rank: Rank, world: World) -> list[Finding]:
    """Lets the first rank leave a mark in each folder, and all others look for it; called on all ranks.

    A folder that is not there yet will be made in the innermost one that is, which gets the mark in its place. Nothing
    stays behind.

    Args:
        folders: by what messages call them; the same on all ranks.
        rank: this one.
        world: all.
    """
    left = _leave_marks(folders) if world.is_first else _Marks({}, {})
    marks = exchange(left, world.device)[0]
    sights = exchange(_Sight(rank, _unseen(marks.paths)), world.device)
    wait_for_all()
    for path in left.paths.values():
        Path(path).unlink()
    first = sights[0].rank
    found = [
        Finding(
            f"{name}: {name_ranks([first])} cannot write into {reason}: give it the right, or choose another folder"
        )
        for name, reason in marks.failures.items()
    ]
    for name, path in marks.paths.items():
        blind = [sight.rank for sight in sights if name in sight.unseen]
        if blind:
            found.append(
                Finding(
                    f"{name}: {Path(path).parent} of {name_ranks([first])} is another folder than that "
                    f"of {name_ranks(blind)}: {name} must lie on a file system that all hosts share"
                )
            )
    return found


def _leave_marks(folders: Mapping[str, Path]) -> _Marks:
    marks = _Marks({}, {})
    for name, folder in folders.items():
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        mark = existing / f".shared-{secrets.token_hex(8)}"
        try:
            mark.touch(exist_ok=False)
        except OSError as error:
            marks.failures[name] = f"{existing} ({error.strerror})"
        else:
            marks.paths[name] = str(mark)
    return marks


def _unseen(paths: Mapping[str, str]) -> list[str]:
    """Looks for some time: a network file system remembers for a while that there was no such folder."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while unseen := [name for name, path in paths.items() if not Path(path).exists()]:
        if time.monotonic() > give_up:
            break
        time.sleep(_LOOK_AGAIN_SECONDS)
    return unseen
