"""Of test_killed_streams: runs are forked from here, so that libraries are imported once, and killed.

Prints as JSON what was found; see `Found`.
"""

import fcntl
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import TypedDict

from megaslm.data.loading.fetch import FetchSettings
from megaslm.data.loading.loader import TrainingStream
from megaslm.data.loading.mixture import MixtureStream
from megaslm.data.stream import Stream, StreamingDataset
from megaslm.engine.distributed import join_world
from tests.forks import fork, fork_two_ranks, wait_until
from tests.streams import BATCH_ROWS, SHUFFLE_SEED, assert_right, fetched, plan, take, write_stream

KILLS = 20
SHARED_MEMORY = Path("/dev/shm")
STREAMS_NAME = re.compile(r"\d{6}_\w+|megaslm-stream-.*")
FETCH = FetchSettings(cache_limit_bytes=None, retries=0, timeout_seconds=20)


class Found(TypedDict):
    killed_after_opening: int
    left_by_kills: int
    clean_run_statuses: list[int]
    left_at_the_end: list[str]
    lock_files: list[str]
    taken_from_neighbours: list[str]


def main(root: Path) -> None:
    temporary = Path(os.environ["TMPDIR"])
    stream = fetched(write_stream(root / "a", shards=6), root / "cache")
    stop = root / "stop"
    leased, plain = write_stream(root / "leased", shards=2), write_stream(root / "plain", shards=2)
    neighbours = {
        root / "leased.progress": lambda said: read_on(leased, said, stop, workers=1),
        root / "plain.progress": lambda said: read_without_lease(plain, said, stop),
    }
    neighbour_processes = [fork(lambda said=said, run=run: run(said)) for said, run in neighbours.items()]
    wait_until(lambda: all(map(progress, neighbours)))
    theirs = {shared for shared in listed() for said in neighbours if shared[0].startswith(said.read_text().split()[0])}
    before = listed()
    generator = random.Random(0)
    opened = 0
    for number in range(KILLS):
        said = root / f"run-{number}.0"
        run = start_two_ranks(stream, said) if number == KILLS // 2 else [start_one(stream, said)]
        if number % 3 == 0 or len(run) > 1:
            wait_until(lambda said=said: progress(said) > 0)
        time.sleep(generator.uniform(0, 0.2))
        os.killpg(run[0], signal.SIGKILL)
        for process in run:
            os.waitpid(process, 0)
        opened += progress(said) > 0
    left_by_kills = abandoned(before)
    clean = [os.waitpid(process, 0)[1] for process in fork_two_ranks(lambda: read_two_epochs(stream))]
    left_at_the_end = abandoned(before)
    were = {said: progress(said) for said in neighbours}
    wait_until(lambda: all(progress(said) > count for said, count in were.items()))
    taken = theirs - listed()
    stop.touch()
    for process in neighbour_processes:
        os.waitpid(process, 0)
    found: Found = {
        "killed_after_opening": opened,
        "left_by_kills": len(left_by_kills),
        "clean_run_statuses": list(map(os.waitstatus_to_exitcode, clean)),
        "left_at_the_end": left_at_the_end,
        "lock_files": [path.name for path in temporary.glob("*_filelock")],
        "taken_from_neighbours": sorted(name for name, _ in taken),
    }
    print(json.dumps(found))


def start_one(stream: MixtureStream, said: Path) -> int:
    return fork(lambda: read_on(stream, said, workers=2))


def start_two_ranks(stream: MixtureStream, said: Path) -> list[int]:
    def run() -> None:
        world = join_world()
        read_on(stream, said.with_suffix(f".{world.rank}"), workers=2, world_size=2)

    return fork_two_ranks(run)


def open_stream(stream: MixtureStream, workers: int, world_size: int = 1) -> TrainingStream:
    return TrainingStream([stream], plan(world_size), shuffle_seed=SHUFFLE_SEED, workers=workers, fetch=FETCH)


def read_two_epochs(stream: MixtureStream) -> None:
    world = join_world()
    assert_right(take(open_stream(stream, workers=2, world_size=world.size), 14))


def read_on(stream: MixtureStream, said: Path, stop: Path | None = None, *, workers: int, world_size: int = 1) -> None:
    opened = open_stream(stream, workers, world_size)
    for number, batch in enumerate(opened.micro_batches(0), start=1):
        assert_right([batch])
        say(said, opened._rows.prefix, number)
        if stop is not None and is_over(stop):
            return
        time.sleep(0.005)


def read_without_lease(stream: MixtureStream, said: Path, stop: Path) -> None:
    """What another program does that uses streaming."""
    dataset = StreamingDataset(
        streams=[Stream(local=str(stream.local))], batch_size=BATCH_ROWS, shuffle=True, num_canonical_nodes=4
    )
    number = 0
    while not is_over(stop):
        for row in dataset:
            number += len(row["tokens"]) > 0
            say(said, dataset._shm_prefix_int, number)
            time.sleep(0.005)


def is_over(stop: Path) -> bool:
    """Whether a neighbour is to end: it is told to, or whoever could tell it is gone."""
    return stop.exists() or os.getppid() == 1


def say(said: Path, prefix: int, number: int) -> None:
    written = said.with_name(f"{said.name}.written")
    written.write_text(f"{prefix:06} {number}")
    written.rename(said)


def progress(said: Path) -> int:
    return int(said.read_text().split()[1]) if said.exists() else 0


def listed() -> set[tuple[str, int]]:
    """Names and inodes of what streams have in shared memory."""
    found = set()
    for entry in os.scandir(SHARED_MEMORY):
        if STREAMS_NAME.fullmatch(entry.name):
            found.add((entry.name, entry.inode()))
    return found


def abandoned(before: set[tuple[str, int]]) -> list[str]:
    """What has come since `before` and no living process has, on a machine that others may use for the same."""
    maps = ""
    for path in Path("/proc").glob("[0-9]*/maps"):
        try:
            maps += path.read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    new = sorted(name for name, _ in listed() - before)
    return [name for name in new if f"{SHARED_MEMORY / name}\n" not in maps and not is_held(SHARED_MEMORY / name)]


def is_held(path: Path) -> bool:
    try:
        with path.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return True
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
