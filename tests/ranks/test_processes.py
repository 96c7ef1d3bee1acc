"""What is seen of processes, that only the right one is killed, and that their lines stay whole."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from megaslm.health.processes import Process, _stat
from tests.forks import wait_until


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def process_of(child: "subprocess.Popen[bytes]") -> Process:
    own = Process.own()
    return replace(own, pid=child.pid, started_ticks=int(_stat(child.pid)[19]))


def test_states_are_told(child: "subprocess.Popen[bytes]") -> None:
    process = process_of(child)
    wait_until(lambda: process.state == "asleep (S)")
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: process.state == "stopped by a signal (T)")
    process.kill()
    # It has ended, and nobody has asked for its status yet.
    wait_until(lambda: process.is_gone)
    assert child.wait() == -signal.SIGKILL
    assert process.is_gone
    process.kill()


@pytest.mark.parametrize("change", [{"started_ticks": 1}, {"boot": "another"}, {"pid_namespace": "pid:[7]"}])
def test_another_process_of_that_number_is_not_touched(
    child: "subprocess.Popen[bytes]", change: dict[str, str | int]
) -> None:
    other = replace(process_of(child), **change)
    assert other.is_gone == other.is_visible
    other.kill()
    assert process_of(child).state in ("running (R)", "asleep (S)")
    assert child.poll() is None


def test_a_process_sees_itself() -> None:
    assert Process.own().state == "running (R)"
    assert not Process.own().is_gone


def test_a_line_and_its_end_are_one_write(tmp_path: Path) -> None:
    """Ranks of one host share an output. A socket of datagrams keeps each write apart."""
    read, written = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with read, written:
        subprocess.run(
            [sys.executable, "-m", "megaslm", "verify", str(tmp_path)],
            stdout=written, stderr=written, env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False, timeout=60,
        )  # fmt: skip
        read.setblocking(False)
        writes = [read.recv(1 << 16)]
        with suppress(BlockingIOError):
            while True:
                writes.append(read.recv(1 << 16))
    assert len(writes) == 2
    assert all(write.count(b"\n") == 1 and write.endswith(b"\n") for write in writes)
