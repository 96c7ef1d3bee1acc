"""Which system calls the filter allows: its program is executed here, for both architectures, by a small machine."""

import errno
import platform
import re
import signal
from pathlib import Path

import pytest

from megaslm.sandbox import confinement
from megaslm.sandbox.syscalls import _DENIED, ARCHITECTURES, Architecture

HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
OWN_PID = 4711
ALLOWED, KILLED = "allowed", "killed"


@pytest.fixture(params=ARCHITECTURES)
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Architecture:
    """The numbers of each architecture, which is then the machine's."""
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    return ARCHITECTURES[request.param]


def answer(calls: Architecture, number: int, *arguments: int, audit: int | None = None) -> str:
    """What the filter says to a call: allowed, killed, or the name of an errno."""
    data = {0: number, 4: calls.audit if audit is None else audit}
    data |= {16 + 8 * place: argument & 0xFFFFFFFF for place, argument in enumerate((*arguments, 0, 0))}
    program = confinement._filter(OWN_PID)
    place, loaded = 0, 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        match code:
            case 0x20:
                loaded = data[operand]
            case 0x06:
                verdicts = {0x7FFF0000: ALLOWED, 0x80000000: KILLED}
                return verdicts[operand] if operand in verdicts else errno.errorcode[operand - 0x50000]
            case _:
                holds = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: bool(loaded & operand)}[code]
                place += if_true if holds else if_false


def test_what_computes_and_prints_is_allowed(calls: Architecture) -> None:
    read, write, mmap, openat, exit_group = (
        (0, 1, 9, 257, 231) if calls is ARCHITECTURES["x86_64"] else (63, 64, 222, 56, 94)
    )
    assert {answer(calls, number) for number in (read, write, mmap, openat, exit_group)} == {ALLOWED}


def test_what_reaches_others_is_denied(calls: Architecture) -> None:
    assert len(calls.denied) > 70
    assert {answer(calls, number) for number in calls.denied} == {"EPERM"}


def test_threads_are_allowed_and_processes_are_not(calls: Architecture) -> None:
    thread_flags = 0x3D0F00  # What glibc passes for a thread.
    assert answer(calls, calls.clone, thread_flags) == ALLOWED
    assert answer(calls, calls.clone, signal.SIGCHLD) == "EPERM"
    assert answer(calls, calls.clone, 0x10000000 | signal.SIGCHLD) == "EPERM"
    assert answer(calls, calls.clone3) == "ENOSYS"


def test_a_process_signals_and_limits_itself_alone(calls: Architecture) -> None:
    assert answer(calls, calls.tgkill, OWN_PID, OWN_PID, signal.SIGABRT) == ALLOWED
    assert answer(calls, calls.tgkill, 1, 1, signal.SIGKILL) == "EPERM"
    assert answer(calls, calls.prlimit64, 0) == ALLOWED
    assert answer(calls, calls.prlimit64, 1) == "EPERM"


def test_descriptors_are_copied_and_signal_nobody(calls: Architecture) -> None:
    assert [answer(calls, calls.fcntl, 1, command) for command in (0, 1, 2, 3, 4, 1030)] == [ALLOWED] * 6
    assert [answer(calls, calls.fcntl, 1, command) for command in (8, 10, 15)] == ["EPERM"] * 3
    assert answer(calls, calls.ioctl, 1, 0x5401) == ALLOWED
    assert [answer(calls, calls.ioctl, 1, request) for request in (0x5412, 0x40086602, 0x8901)] == ["ENOTTY"] * 3


def test_calls_of_other_kinds_and_later_kernels_are_not_made(calls: Architecture) -> None:
    (other,) = (each.audit for each in ARCHITECTURES.values() if each is not calls)
    assert answer(calls, 1, audit=other) == KILLED
    assert answer(calls, 1, audit=0x40000003) == KILLED  # i386
    assert answer(calls, 0x40000000 + 57) == "ENOSYS"  # fork of x32
    assert answer(calls, 452) == "ENOSYS"


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_numbers_are_those_of_the_kernel(machine: str) -> None:
    header = Path("/usr/include") / HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed (linux-libc-dev)")
    lines = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in lines}
    names = [name for names in _DENIED for name in names.split(", ")]
    pairs = [pair for pairs in _DENIED.values() for pair in pairs]
    found = dict(zip(names, (pair[list(ARCHITECTURES).index(machine)] for pair in pairs), strict=True))
    for name in ("clone", "clone3", "tgkill", "prlimit64", "fcntl", "ioctl", "capset"):
        found[name] = getattr(ARCHITECTURES[machine], name)
    assert found == {name: numbers.get(name) for name in found}
