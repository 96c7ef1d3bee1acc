"""One process inside the sandbox, seen from outside."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megaslm.errors import SandboxError
from megaslm.sandbox.interpreter import Settings
from megaslm.sandbox.result import Ending, ProgramResult
from megaslm.sandbox.tiers import PACKAGE

LOADING_SECONDS, GRACE_SECONDS = 120, 15
"""How long a process may take to load numpy and sympy, and to answer after a program's time is over."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # Sets have one order in every process.
    "PYTHONHASHSEED": "0",
    # A process with threads cannot fork safely.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""All of the environment inside: nothing of this process's own."""
_PYTHON = (os.path.realpath(sys.executable), "-P", "-s", "-S", "-B", "-X", "utf8", "-c")
"""Neither the site module nor anything of the user's is loaded, and no bytecode is written."""
_INSIDE = """
import json, sys
package, imports, settings = json.loads(sys.argv[1])
sys.path.insert(0, package)
from megaslm.sandbox.interpreter import Settings, serve
sys.path[:1] = []
sys.path += imports
serve(Settings(**settings))
"""


class Worker:
    """A process that runs one program after another, and is started again when it ended."""

    def __init__(self, prefix: Sequence[str], imports: Sequence[Path], settings: Settings, folder: Path) -> None:
        """`prefix` is the command that isolates the process; `imports` hold numpy and sympy.

        The process starts in `folder`. Only in the tier unsafe can a program write there.
        """
        argument = json.dumps((str(PACKAGE), [str(each) for each in imports], asdict(settings)))
        self._folder = folder
        self._command = (*prefix, *_PYTHON, _INSIDE, argument)
        self._settings = settings
        self.start()

    @property
    def is_idle(self) -> bool:
        """Whether the next program can be sent."""
        return not self.is_loading and self.task is None

    def start(self) -> None:
        """Start the process; it answers when it has loaded what programs need."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=ENVIRONMENT,
            cwd=self._folder,
            bufsize=0,
            pass_fds=[self._settings.host_pidfd],
            # Signals of the terminal do not reach it, and the process group is all of the worker.
            start_new_session=True,
        )
        self._received = bytearray()
        self.is_loading = True
        self.task: int | None = None
        """The number of the program that runs."""
        self.deadline = time.monotonic() + LOADING_SECONDS

    def fileno(self) -> int:
        """The descriptor to wait for answers on."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, task: int, program: str) -> None:
        """Hand a program over. A process that has ended is noticed by `receive`."""
        assert self._process.stdin is not None
        self.task = task
        self.deadline = time.monotonic() + self._settings.seconds + GRACE_SECONDS
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(program).encode() + b"\n")

    def receive(self) -> ProgramResult | None:
        """Read what has come, without waiting for more: the result of the task once it is whole.

        Raises an EOFError if the process has ended or is late, and a SandboxError if it did not come to be ready.
        """
        is_late = time.monotonic() > self.deadline
        received = b"" if is_late else os.read(self.fileno(), 1 << 20)
        if not received and self.is_loading:
            raise SandboxError(f"not ready after {LOADING_SECONDS} s" if is_late else self._last_words())
        if not received:
            raise EOFError
        self._received += received
        if not self._received.endswith(b"\n"):
            return None
        answer = json.loads(self._received)
        self._received.clear()
        if self.is_loading:
            self.is_loading = False
            self.deadline = math.inf
            return None
        self.task, self.deadline = None, math.inf
        if answer["is_used_up"]:
            self.restart()
        return ProgramResult(**{**answer["result"], "ending": Ending(answer["result"]["ending"])})

    def restart(self) -> None:
        """Put a new process in the place of this one."""
        self.end()
        self.start()

    def end(self) -> None:
        """End the process, and what runs in it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # It leaves when its input ends. bubblewrap then collects it; nobody might, if both were killed at once.
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _last_words(self) -> str:
        """The last line that an ended process wrote to standard error."""
        status = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
