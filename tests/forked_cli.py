"""The command in processes that start in a moment: without the seconds of imports."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import megaslm.training.run_folder  # noqa: F401  # Takes seconds, which no child is to spend again.
from megaslm import cli
from tests.forks import fork, fork_ranks, statuses_of


def run_megaslm(*arguments: str | Path, world_size: int = 1, expect_status: int = 0) -> str:
    """Runs `megaslm ARGUMENTS` on each rank; gives what all of them printed, the first rank's output first."""
    with TemporaryDirectory() as folder:
        printed = [Path(folder) / str(rank) for rank in range(world_size)]

        def command() -> None:
            rank = int(os.environ.get("RANK", "0"))
            _be_megaslm(arguments, printed[rank], printed[rank])

        statuses = statuses_of([fork(command)] if world_size == 1 else fork_ranks(world_size, command))
        said = "\n".join(path.read_text(encoding="utf-8") for path in printed)
    assert statuses == [expect_status] * world_size, f"exit statuses {statuses}, expected {expect_status}:\n{said}"
    return said


def call_megaslm(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs `megaslm ARGUMENTS` in one process, as `subprocess.run` would that captures its output."""
    with TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        (status,) = statuses_of([fork(lambda: _be_megaslm(arguments, output, errors))])
        return subprocess.CompletedProcess(arguments, status, *(path.read_text("utf-8") for path in (output, errors)))


def _be_megaslm(arguments: tuple[str | Path, ...], output: Path, errors: Path) -> None:
    for standard, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), standard)
    sys.stdout, sys.stderr = (os.fdopen(standard, "w", buffering=1, encoding="utf-8") for standard in (1, 2))
    sys.argv = ["megaslm", *map(str, arguments)]
    cli.main()
