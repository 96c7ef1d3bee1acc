"""Of test_remote_stream: two ranks wait for one shard that never comes, and the one that fetches it is killed.

Prints the exit status of the other one as JSON; its message goes to stderr.
"""

import json
import os
import signal
import sys
from pathlib import Path

from megaslm.data.loading.fetch import FetchSettings
from megaslm.data.loading.loader import TrainingStream
from megaslm.data.loading.mixture import MixtureStream
from megaslm.data.loading.shard_board import ShardBoard
from megaslm.engine.distributed import join_world
from tests.forks import fork_two_ranks, wait_until
from tests.streams import SHUFFLE_SEED, plan

LONG = FetchSettings(cache_limit_bytes=None, retries=0, timeout_seconds=600)


def main(folder: Path, remote: str, rows: int) -> None:
    stream = MixtureStream(folder, remote, rows, domain=0, proportion=None)
    said = folder.parent / "prefix"

    def read() -> None:
        world = join_world()
        training = TrainingStream([stream], plan(world.size), shuffle_seed=SHUFFLE_SEED, workers=0, fetch=LONG)
        if world.is_first:
            said.write_text(f"{training._rows.prefix}\n")
        next(training.micro_batches(0))

    ranks = fork_two_ranks(read)
    wait_until(lambda: said.exists() and said.read_text().endswith("\n"))
    board = ShardBoard(int(said.read_text()), shards=1)
    wait_until(lambda: board.preparer(0) is not None)
    downloader = board.preparer(0)
    (other,) = (process for process in ranks if process != downloader)
    os.kill(downloader, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
    print(json.dumps({"downloader": downloader, "status of the other": status}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
