"""The command in ranks that start in a moment: what `tests.ranks.run_megaslm` does, without the seconds of imports."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from megaslm import cli
from tests.forks import fork, fork_ranks, statuses_of


def run_megaslm(*arguments: str | Path, world_size: int = 1, expect_status: int = 0) -> str:
    """Runs `megaslm ARGUMENTS` on each rank; gives what all of them printed, the first rank's output first."""
    with TemporaryDirectory() as folder:
        printed = [Path(folder) / str(rank) for rank in range(world_size)]

        def command() -> None:
            output = os.open(printed[int(os.environ.get("RANK", "0"))], os.O_WRONLY | os.O_CREAT)
            for standard in (1, 2):
                os.dup2(output, standard)
            sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1, encoding="utf-8")
            sys.argv = ["megaslm", *map(str, arguments)]
            cli.main()

        statuses = statuses_of([fork(command)] if world_size == 1 else fork_ranks(world_size, command))
        said = "\n".join(path.read_text(encoding="utf-8") for path in printed)
    assert statuses == [expect_status] * world_size, f"exit statuses {statuses}, expected {expect_status}:\n{said}"
    return said
