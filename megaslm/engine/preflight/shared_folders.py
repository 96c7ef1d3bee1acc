"""Whether all ranks see the same folders, without which no checkpoint would ever be whole, and no score ever found."""

import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from megaslm.engine.distributed import World
from megaslm.engine.preflight.exchange import exchange
from megaslm.engine.preflight.findings import Finding
from megaslm.engine.rank_names import Rank, name_ranks

# For so long NFS may remember that a folder was not there (acdirmax).
_PATIENCE_SECONDS = 65.0
_LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class _Mark:
    """An empty file in a folder or, where that is not there yet, in the innermost one around it that is."""

    name: str
    levels_up: int

    def is_seen_from(self, folder: Path) -> bool:
        """Whether it is there for a rank to which the folder is this one."""
        around = _outwards(folder)
        try:
            return self.levels_up < len(around) and (around[self.levels_up] / self.name).exists()
        except OSError:  # It may not look there.
            return False


@dataclass(frozen=True)
class _Marks:
    """What a rank has left for the others to find, by the names of the folders."""

    by_folder: dict[str, _Mark]


@dataclass(frozen=True)
class _Sight:
    """The folders whose marks a rank does not see."""

    rank: Rank
    unseen: list[str]


def unshared(folders: Mapping[str, Path], rank: Rank, world: World) -> list[Finding]:
    """Lets the first rank leave a mark in each folder, and all others look for it; called on all ranks.

    A folder into which the first rank cannot write is passed over: whoever has to write there says so. No mark stays
    behind unless the first rank is killed, and then it is an empty file `.shared-…`.

    Args:
        folders: by what messages call them; the same on all ranks.
        rank: this one.
        world: all.
    """
    with _marked(folders if world.is_first else {}) as own:
        marks = exchange(_Marks(own), world.device)[0].by_folder
        sights = exchange(_Sight(rank, _unseen(folders, marks, rank)), world.device)
    first = sights[0].rank
    return [
        Finding(
            f"{name}: {folders[name]} of {name_ranks([first])} is another folder than that of {name_ranks(blind)}: "
            f"{name} must lie on a file system that all hosts share"
        )
        for name in marks
        if (blind := [sight.rank for sight in sights if name in sight.unseen])
    ]


@contextmanager
def _marked(folders: Mapping[str, Path]) -> Iterator[dict[str, _Mark]]:
    with ExitStack() as left:
        marks = {}
        for name, folder in folders.items():
            mark = f".shared-{secrets.token_hex(8)}"
            with suppress(OSError):
                levels_up, innermost = next(
                    (level, outer) for level, outer in enumerate(_outwards(folder)) if outer.is_dir()
                )
                (innermost / mark).touch(exist_ok=False)
                left.callback(_remove, innermost / mark)
                marks[name] = _Mark(mark, levels_up)
        yield marks


def _outwards(folder: Path) -> list[Path]:
    return [folder.absolute(), *folder.absolute().parents]


def _remove(mark: Path) -> None:
    with suppress(OSError):
        mark.unlink()


def _unseen(folders: Mapping[str, Path], marks: Mapping[str, _Mark], rank: Rank) -> list[str]:
    """Looks for some time: a network file system remembers for a while that there was no such folder."""
    give_up: float | None = None
    while unseen := [name for name, mark in marks.items() if not mark.is_seen_from(folders[name])]:
        if give_up is None:
            give_up = time.monotonic() + _PATIENCE_SECONDS
            print(
                f"{name_ranks([rank])} does not see what the first rank has written for {', '.join(unseen)}, and looks "
                f"for {_PATIENCE_SECONDS:.0f} s more",
                file=sys.stderr,
                flush=True,
            )
        elif time.monotonic() > give_up:
            break
        time.sleep(_LOOK_AGAIN_SECONDS)
    return unseen
