"""Programs that models could write, and what the sandbox makes of them.

`python -m tests.system.sandbox.sandbox_outcomes TIER FOLDER MEMORY_BYTES` runs them, each followed by a harmless one,
and prints the results as JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from megaslm.sandbox.result import Ending, ProgramResult
from megaslm.sandbox.sandbox import Sandbox

SECONDS = 5
NEXT = "import sympy\nprint(sympy.Integer(6) * 7, sympy.pi.evalf(5))"
NEXT_PRINTS = "42 3.1416\n"


@dataclass(frozen=True)
class Outcome:
    """A program and what it comes to. `OUTSIDE` in it is a file of the user's; one of `errors` is in the error."""

    program: str
    ending: Ending
    stdout: str = ""
    errors: tuple[str, ...] = ()


def done(program: str, stdout: str) -> Outcome:
    return Outcome(program, Ending.DONE, stdout)


def fails(program: str, *errors: str, stdout: str = "") -> Outcome:
    return Outcome(program, Ending.ERROR, stdout, errors)


DENIED, NO_FILE = "PermissionError", "FileNotFoundError"
OUTCOMES = {
    "an answer": done("from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 4, x))", "[-2, 2]\n"),
    "an early exit": done("print(1)\nexit()\nprint(2)", "1\n"),
    "an exit with a status": fails("print(1)\nimport sys\nsys.exit(3)", "SystemExit: 3", stdout="1\n"),
    "an exit past Python": done("import os\nprint(1, flush=True)\nos._exit(0)", "1\n"),
    "an exception": fails("print(1)\n[][3]", "IndexError: list index out of range", stdout="1\n"),
    "an exception of two lines": fails("raise ValueError('one\\ntwo')", "two"),
    "no Python": fails("The answer is 4.", "SyntaxError: invalid syntax"),
    "a zero byte": fails("print(1)\0", "null bytes"),
    "a lone surrogate": fails("print('\ud800')", "UnicodeEncodeError"),
    "an endless loop": Outcome("print(1, flush=True)\nwhile True: pass", Ending.TIMED_OUT, "1\n", ("Timeout Error",)),
    "an endless sleep that ignores signals": Outcome(
        "import signal, time\nfor each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(each, signal.SIG_IGN)\ntime.sleep(10**6)",
        Ending.TIMED_OUT,
        errors=("Timeout Error",),
    ),
    "a large allocation": fails("print(1)\nb = bytearray(8 << 30)", "MemoryError", stdout="1\n"),
    "a growing list": fails("rows = []\nwhile True: rows.append(bytes(10**8))", "MemoryError"),
    "many processes": fails("import os\nfor _ in range(10**4): os.fork()", DENIED),
    "a child that ignores signals": fails(
        "import os, signal, time\nif os.fork() == 0:\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(10**6)",
        DENIED,
    ),
    "another program": fails("import subprocess\nsubprocess.run(['true'])", DENIED),
    "a program in its place": fails("import os\nos.execv('/bin/true', ['true'])", DENIED, NO_FILE),
    "a pool of processes": fails("import multiprocessing\nmultiprocessing.Pool(2)", DENIED, "OSError", NO_FILE),
    "a socket": fails("import socket\nsocket.create_connection(('127.0.0.1', 9))", DENIED),
    "a download": fails("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')", "URLError", "urlopen"),
    "a name on the network": fails("import socket\nsocket.getaddrinfo('example.org', 80)", "gaierror"),
    "a file outside, read": fails("open(OUTSIDE).read()", DENIED, NO_FILE),
    "a file outside, written": fails("open(OUTSIDE, 'w').write('x')", DENIED, NO_FILE, "Read-only"),
    "a file outside, removed": fails("import os\nos.remove(OUTSIDE)", DENIED, NO_FILE),
    "a file outside, truncated": fails("import os\nos.truncate(OUTSIDE, 0)", DENIED),
    "a file outside, another mode": fails("import os\nos.chmod(OUTSIDE, 0)", DENIED),
    "a file beside it": fails("open(OUTSIDE + '.beside', 'w')", DENIED, NO_FILE, "Read-only"),
    "a file at the root": fails("open('/x', 'w')", DENIED, "Read-only"),
    "a file among devices": fails("open('/dev/x', 'w')", DENIED, "Read-only"),
    "a file of Python's, written": fails("import sympy\nopen(sympy.__file__, 'a')", DENIED, "Read-only"),
    "other processes' environments": fails("open('/proc/1/environ').read()", DENIED, NO_FILE),
    "the environment": done("import os\nprint(os.environ.get('SECRET'), 'USER' in os.environ)", "None False\n"),
    "a signal to the parent": fails("import os\nos.kill(os.getppid(), 9)", DENIED),
    "a signal to all": fails("import os\nos.kill(-1, 9)", DENIED),
    "limits of the parent": fails(
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))", DENIED
    ),
    "a SIGIO to the parent": fails("import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())", DENIED),
    "input()": fails("print(1)\ninput()", "EOFError", stdout="1\n"),
    "standard input": done("import sys\nprint(repr(sys.stdin.read()))", "''\n"),
    "a crash of the interpreter": Outcome(
        "import ctypes\nctypes.string_at(0)", Ending.KILLED, errors=("killed by signal 11 ",)
    ),
    "an abort": Outcome("import os\nos.abort()", Ending.KILLED, errors=("killed by signal 6 ",)),
    "a signal without a name": Outcome(
        "import signal\nsignal.raise_signal(40)", Ending.KILLED, errors=("killed by signal 40 ",)
    ),
    "endless output": Outcome(
        "while True: print('x' * 999)", Ending.OUTPUT_TOO_LONG, ("x" * 999 + "\n") * 4000, ("4,000,000 bytes",)
    ),
    "endless errors": Outcome("import sys\nwhile True: sys.stderr.write('x' * 999)", Ending.TIMED_OUT),
    "long output": done("print('x' * 3_999_999)", "x" * 3_999_999 + "\n"),
    "output too long at the end": Outcome(
        "print('x' * 4_000_000)", Ending.OUTPUT_TOO_LONG, "x" * 4_000_000, ("4,000,000 bytes",)
    ),
    "output without newline": done("print(42, end='')", "42"),
    "output that is not UTF-8": done("import sys\nsys.stdout.buffer.write(b'\\xff\\n')", "\ufffd\n"),
    "output to another stream": done(
        "import io, sys\nprint(1)\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint('é')", "é\n1\n"
    ),
    "a closed output": Outcome("import os\nos.close(1)\nos.close(2)\nwhile True: pass", Ending.TIMED_OUT),
    "deep recursion": fails("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
    "threads": done(
        "import threading, time\ndef late():\n    time.sleep(0.2)\n    print(2)\n"
        "threading.Thread(target=late).start()\nprint(1)",
        "1\n2\n",
    ),
    "many threads": fails(
        "import threading, time\nfor _ in range(10**5):\n"
        "    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()",
        "RuntimeError: can't start new thread",
        "MemoryError",
    ),
    "a class of its own": done(
        "import typing\nclass Point(typing.NamedTuple):\n    x: int\nprint(__name__, Point(1), Point.__module__)",
        "__main__ Point(x=1) __main__\n",
    ),
    "changes to Python": done("import builtins, math\nmath.pi = 3\nbuiltins.print = None\nsum = 3\nanswer = 4", ""),
    "a large file": fails("open('a', 'wb').write(bytes(64 << 20))", DENIED, "File too large"),
    "many files": fails("for i in range(10**4): open(f'{i}', 'wb').write(bytes(1 << 20))", DENIED, "No space left"),
    "a deep folder": fails(
        "import os\nfor _ in range(3000):\n    os.mkdir('a', 0o700)\n    os.chdir('a')\nos.chmod('.', 0)", DENIED
    ),
    "numbers drawn": done(
        "import random, numpy\nprint(random.random(), numpy.random.rand())", "0.8444218515250481 0.5488135039273248\n"
    ),
}
"""Where a list of errors has several, tiers differ, and nothing else."""


def run(tier: str, folder: Path, memory_bytes: int) -> list[tuple[ProgramResult, ProgramResult]]:
    """The results of all programs, each with that of the harmless one after it."""
    outside = folder / "outside"
    outside.write_text("of the user", encoding="utf-8")
    programs = [each.program.replace("OUTSIDE", repr(str(outside))) for each in OUTCOMES.values()]
    with Sandbox(workers=2, seconds=SECONDS, memory_gib=memory_bytes / 2**30, tier=tier) as sandbox:  # type: ignore[arg-type]
        results = sandbox.run([each for program in programs for each in (program, NEXT)])
    return list(zip(results[::2], results[1::2], strict=True))


if __name__ == "__main__":
    print(
        json.dumps([[asdict(each) for each in pair] for pair in run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))])
    )
