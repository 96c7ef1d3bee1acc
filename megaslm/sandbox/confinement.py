"""What a process gives up before a program runs in it: capabilities, files, resources, system calls.

It runs inside the sandbox. Each function is final for the process and its children.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
from collections.abc import Sequence

from megaslm.sandbox.syscalls import (
    FIRST_UNKNOWN,
    LANDLOCK_ADD_RULE,
    LANDLOCK_CREATE_RULESET,
    LANDLOCK_RESTRICT_SELF,
    this_architecture,
)

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
"""Devices that programs have."""
OPEN_FILES, FILE_BYTES = 64, 1 << 20

# Constants of linux/prctl.h, linux/capability.h, linux/landlock.h, linux/seccomp.h and linux/filter.h.
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 1, 38, 22, 2
_CAPABILITY_VERSION_3 = 0x20080522
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_LANDLOCK_VERSION, _PATH_BENEATH = 1, 1
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_CLONE_THREAD = 0x10000

_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. F_SETOWN and F_SETSIG would signal other processes."""
_IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Others change the flags of files that are only readable."""

_libc = ctypes.CDLL(None, use_errno=True)


def give_up_privileges() -> None:
    """Drop all capabilities, and never gain any again. A filter and Landlock may then be set without them."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    _system_call(this_architecture().capset, header, ctypes.create_string_buffer(24))


def restrict_files(readable: Sequence[str]) -> None:
    """Leave what is under `readable` to read and DEVICES to read and write; Landlock denies all other files.

    Raises an OSError on a kernel without Landlock.
    """
    abi = _system_call(LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    handled = (1 << _RIGHTS_BY_ABI[min(abi, max(_RIGHTS_BY_ABI))]) - 1
    ruleset = _system_call(LANDLOCK_CREATE_RULESET, ctypes.create_string_buffer(struct.pack("Q", handled)), 8, 0)
    rights = {path: _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0) for path in readable}  # noqa: PTH112
    for path, allowed in {**rights, **dict.fromkeys(DEVICES, _READ_FILE | _WRITE_FILE)}.items():
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, opened))
        _system_call(LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        os.close(opened)
    _system_call(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def limit_resources(seconds: float, memory_bytes: int) -> None:
    """Limit CPU time, address space, open files and the size of a file; no core is dumped."""
    limits = {
        # The watching process ends a program by wall time; this ends one whose watcher died.
        resource.RLIMIT_CPU: int(seconds) + 2,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, wanted in limits.items():
        _, hard = resource.getrlimit(kind)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))


def die_with_parent() -> None:
    """The kernel kills this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def filter_system_calls() -> None:
    """Let no process or socket be made, no other process be touched, no file's attributes be changed; threads stay."""
    instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in _filter(os.getpid()))
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(buffer))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program, len(program)))


_Instruction = tuple[int, int, int, int]
"""Of a BPF program: code, jump if true, jump if false, operand."""


def _filter(own_pid: int) -> list[_Instruction]:
    calls = this_architecture()
    return [
        # A process can change to 32-bit calls, whose numbers are others.
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_EQUAL, 1, 0, calls.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        # The C library falls back on older calls. This ends x32 calls, too: their numbers begin at 2^30.
        (_AT_LEAST, 0, 1, FIRST_UNKNOWN),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        # The arguments of clone3 are in memory, where a filter cannot read them; the C library falls back on clone.
        (_EQUAL, 0, 1, calls.clone3),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        *(each for number in calls.denied for each in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | errno.EPERM))),
        (_EQUAL, 0, 4, calls.clone),
        (_LOAD, 0, 0, _ARGUMENTS_OFFSET),
        (_HAS_BITS, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        # abort() and crashes signal their own process.
        *_only(calls.tgkill, 0, (own_pid,), errno.EPERM),
        *_only(calls.prlimit64, 0, (0,), errno.EPERM),
        *_only(calls.fcntl, 1, _FCNTL_COMMANDS, errno.EPERM),
        *_only(calls.ioctl, 1, _IOCTL_REQUESTS, errno.ENOTTY),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _only(number: int, argument: int, values: Sequence[int], otherwise: int) -> list[_Instruction]:
    """Allow a call only if the low 32 bits of an argument, all that the kernel reads of these, are one of `values`."""
    count = len(values)
    return [
        (_EQUAL, 0, count + 3, number),
        (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * argument),
        *((_EQUAL, count - place, 0, value) for place, value in enumerate(values)),
        (_RETURN, 0, 0, _FAIL | otherwise),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _prctl(option: int, value: int, argument: "ctypes.Array[ctypes.c_char] | None" = None) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), zero if argument is None else argument, zero, zero), "prctl")


def _system_call(number: int, *arguments: "int | ctypes.Array[ctypes.c_char] | None") -> int:
    passed = (ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments)
    return _checked(_libc.syscall(ctypes.c_long(number), *passed), f"system call {number}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
