"""The process inside the sandbox: Python with numpy and sympy loaded, which forks once for each program.

Requests come on standard input and answers go to standard output, one JSON value a line. The first answer is `null`:
the process is ready.
"""

import builtins
import contextlib
import gc
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
import types
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from megaslm.sandbox import confinement
from megaslm.sandbox.result import Ending

SEEDED = ("random", "numpy.random", "sympy.core.random")
PRELOADED = ("math", "fractions", "decimal", "itertools", "collections", "datetime", "numpy", "sympy", *SEEDED)
WARM_UP = """
from sympy import *
x = symbols("x")
solve(x**2 - 3*x + 2, x), integrate(sin(x)*x, (x, 0, 1)), simplify((x**2 - 1)/(x - 1)), Rational(1, 3).evalf(), sqrt(8)
"""
"""sympy imports and caches a lot at the first use; programs find that done."""
STDOUT_BYTES, STDERR_TAIL_BYTES = 4_000_000, 16_384
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Settings:
    """What the process outside tells the one inside.

    Landlock leaves `readable` to read; None leaves the files to bubblewrap. `scratch` is the only folder that can be
    written. Readable `host_pidfd` means that the process outside has ended.
    """

    confined: bool
    readable: list[str] | None
    scratch: str | None
    seconds: float
    memory_bytes: int
    host_pidfd: int


def serve(settings: Settings) -> NoReturn:
    """Answer requests until the process outside ends or closes its side."""
    requests, answers = os.dup(0), os.dup(1)
    host = os.dup(settings.host_pidfd)
    os.close(settings.host_pidfd)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    if settings.confined:
        confinement.give_up_privileges()
        if settings.readable is not None:
            confinement.restrict_files(settings.readable)
    _load()
    watcher = _Watcher(settings, (requests, host))
    _write(answers, b"null\n")
    # The watcher leaves when nobody waits for its answer.
    with contextlib.suppress(SystemExit):
        while (request := _read_line(requests, host)) is not None:
            result = watcher.run(json.loads(request))
            # What a program leaves in the scratch folder must not reach the next: this process is then replaced.
            is_used_up = settings.scratch is not None and bool(os.listdir(settings.scratch))  # noqa: PTH208
            _write(answers, json.dumps({"result": result, "is_used_up": is_used_up}).encode() + b"\n")
    # Python would take a while to clear away what sympy has made.
    os._exit(0)


def _load() -> None:
    for name in PRELOADED:
        import_module(name)
    exec(WARM_UP, {})
    # The site module, which defines them, is not loaded: it would run the .pth files of the environment.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    # Shared with the forks: their garbage collector must not write to these pages.
    gc.collect()
    gc.freeze()


class _Watcher:
    """Forks for a program, reads what it prints, ends it."""

    def __init__(self, settings: Settings, closing: tuple[int, int]) -> None:
        """Readable `closing`: nobody waits for the answer any more."""
        self._settings = settings
        self._closing = closing

    def run(self, program: str) -> dict[str, str | None]:
        """The fields of a ProgramResult."""
        out, out_write = os.pipe()
        err, err_write = os.pipe()
        own_pid = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                _confine(out_write, err_write, own_pid, self._settings)
                _run_and_exit(program)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(out_write)
        os.close(err_write)
        for descriptor in (out, err):
            os.set_blocking(descriptor, False)
        exited = os.pidfd_open(child)
        stdout, stderr = bytearray(), bytearray()
        try:
            ending = self._watch(out, err, exited, stdout, stderr)
        finally:
            _kill(child)
            _, status = os.waitpid(child, 0)
        _drain(out, stdout)
        _drain(err, stderr)
        for descriptor in (out, err, exited):
            os.close(descriptor)
        if len(stdout) > STDOUT_BYTES:
            ending = Ending.OUTPUT_TOO_LONG
        return _answer(ending, status, stdout, stderr)

    def _watch(self, out: int, err: int, exited: int, stdout: bytearray, stderr: bytearray) -> Ending | None:
        """Wait until the program ends by itself (None) or must be ended; leave if nobody waits any more."""
        deadline = time.monotonic() + self._settings.seconds
        poller = select.poll()
        for descriptor in (out, err, exited, *self._closing):
            poller.register(descriptor, select.POLLIN)
        while True:
            milliseconds = (deadline - time.monotonic()) * 1000
            if milliseconds <= 0:
                return Ending.TIMED_OUT
            ready = [descriptor for descriptor, _ in poller.poll(milliseconds)]
            if any(descriptor in self._closing for descriptor in ready):
                raise SystemExit
            for descriptor, text in ((out, stdout), (err, stderr)):
                if descriptor in ready and not _read_some(descriptor, text):
                    poller.unregister(descriptor)
            if len(stdout) > STDOUT_BYTES:
                return Ending.OUTPUT_TOO_LONG
            del stderr[:-STDERR_TAIL_BYTES]
            if exited in ready:
                return None


def _confine(out: int, err: int, parent_pid: int, settings: Settings) -> None:
    """What the forked process gives up before it runs the program."""
    os.setsid()
    confinement.die_with_parent()
    if os.getppid() != parent_pid:
        os._exit(1)
    # Standard input is /dev/null already.
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, 256)
    if settings.scratch is not None:
        os.chdir(settings.scratch)
    confinement.limit_resources(settings.seconds, settings.memory_bytes)
    if settings.confined:
        confinement.filter_system_calls()


def _run_and_exit(program: str) -> NoReturn:
    """Run the program as `python FILE` would; an exception's last line goes to standard error."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = ["program.py"]
    # Programs draw the same numbers on every worker and in every run; `random` seeds itself anew after a fork.
    for module in SEEDED:
        import_module(module).seed(0)
    status = 1
    try:
        try:
            exec(compile(program, "program.py", "exec", dont_inherit=True), main.__dict__)
        except SystemExit as exit:
            if exit.code not in (None, 0):
                raise
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        _flush()
        status = 0
    except BaseException as error:
        # What was printed before comes out as well.
        with contextlib.suppress(BaseException):
            _flush()
        os.write(2, _last_lines(error))
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            stream.flush()


def _last_lines(error: BaseException) -> bytes:
    """What a traceback ends with, in lines of its own."""
    try:
        return ("\n" + "".join(traceback.format_exception_only(error))).encode(errors="replace")
    except MemoryError:
        return b"\nMemoryError\n"


def _kill(child: int) -> None:
    """Kill the program's session; where it could fork, the session is more than one process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)


def _answer(ending: Ending | None, status: int, stdout: bytearray, stderr: bytearray) -> dict[str, str | None]:
    error: str | None
    match ending:
        case Ending.TIMED_OUT:
            error = "Timeout Error"
        case Ending.OUTPUT_TOO_LONG:
            error = f"more than {STDOUT_BYTES:,} bytes of output"
        case _ if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            ending, error = Ending.KILLED, f"killed by signal {number} ({signal.strsignal(number)})"
        case _ if os.waitstatus_to_exitcode(status) == 0:
            ending, error = Ending.DONE, None
        case _:
            lines = stderr.decode(errors="replace").split("\n")
            said = [line for line in lines if line.strip()]
            ending, error = Ending.ERROR, said[-1] if said else f"exit status {os.waitstatus_to_exitcode(status)}"
    return {"ending": ending, "stdout": stdout[:STDOUT_BYTES].decode(errors="replace"), "error": error}


def _read_line(requests: int, host: int) -> bytes | None:
    """The next request; None if none will come."""
    line = bytearray()
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([requests, host], [], [])
        if host in ready or not _read_some(requests, line):
            return None
    return bytes(line)


def _read_some(descriptor: int, text: bytearray) -> bool:
    """Append what there is; False at the end."""
    read = os.read(descriptor, _READ_BYTES)
    text += read
    return bool(read)


def _drain(descriptor: int, text: bytearray) -> None:
    """Append what an ended program left in the pipe. A process that holds the other end is not waited for."""
    with contextlib.suppress(BlockingIOError):
        while len(text) <= STDOUT_BYTES and _read_some(descriptor, text):
            pass


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
