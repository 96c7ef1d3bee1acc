"""Starts real ranks of a Python program on this machine, as a launcher would."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(
    world_size: int,
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    expect_status: int = 0,
    timeout_seconds: int = 180,
) -> str:
    """Runs `python ARGUMENTS` on each rank and gives what all of them printed, the first rank's output first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [_start(rank, world_size, port, arguments, cwd) for rank in range(world_size)]
    try:
        outputs = [process.communicate(timeout=timeout_seconds)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    output = "\n".join(outputs)
    statuses = {process.returncode for process in ranks}
    assert statuses == {expect_status}, f"exit statuses {statuses}, expected {expect_status}:\n{output}"
    return output


def run_megaslm(*arguments: str | Path, cwd: Path | None = None, world_size: int = 1, expect_status: int = 0) -> str:
    """Runs `python -m megaslm ARGUMENTS` on each rank; one rank runs without any launcher's environment."""
    return run_ranks(world_size, ["-m", "megaslm", *map(str, arguments)], cwd=cwd, expect_status=expect_status)


def _start(
    rank: int, world_size: int, port: int, arguments: Sequence[str], cwd: Path | None
) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if world_size > 1:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
