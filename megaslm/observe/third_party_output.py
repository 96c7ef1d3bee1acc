"""What PyTorch, DeepSpeed and other libraries print goes to a log file, and our own lines to the terminal.

C++ code writes to the file descriptors 1 and 2, so these two become the log. Python code of libraries writes there
too: its loggers keep the streams that they find while they are imported. Afterwards `sys.stdout` and `sys.stderr`, to
which MegaSLM prints, are the terminal again.
"""

import faulthandler
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from megaslm.engine.stop_signal import before_ending

# Ends with this process. It gets the log's path, another one if the log moves, and a last word unless the process dies.
_WITNESS = """
while read -r word; do
    if [ "$word" = /ended/ ]; then exit; fi
    log="$word"
done
if [ -s "$log" ]; then
    echo "$1 · the process died; the last lines of its libraries, from $log:"
    tail -n 20 "$log"
fi
"""
_ENDED = "/ended/"
_OUTPUT, _ERRORS = 1, 2


@dataclass
class _Log:
    path: Path
    is_kept: bool
    """Whether the file belongs to a run. Others are removed unless there is a fault."""
    witness: "subprocess.Popen[str]"

    def tell_witness(self, word: str) -> None:
        assert self.witness.stdin is not None
        with suppress(OSError):
            self.witness.stdin.write(f"{word}\n")
            self.witness.stdin.flush()


_log: _Log | None = None


@contextmanager
def diverted(verb: str) -> Iterator[None]:
    """Diverts what libraries print to a log, until the process ends. They are imported within the context.

    Where there is no room for a log, all stays on the terminal. A process that dies, for example by SIGSEGV, leaves the
    stacks of its threads and the last lines of the log on the terminal.
    """
    global _log
    try:
        file, path = tempfile.mkstemp(prefix=f"megaslm-{verb}-", suffix=".log")
    except OSError:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = [_copy(sys.stdout, _OUTPUT), _copy(sys.stderr, _ERRORS)]
    # A session of its own: Ctrl-C and the signals of a launcher leave it alone.
    witness = subprocess.Popen(
        ["sh", "-c", _WITNESS, "sh", verb],
        stdin=subprocess.PIPE,
        stdout=terminal[1].fileno(),
        stderr=terminal[1].fileno(),
        text=True,
        start_new_session=True,
    )
    _log = _Log(Path(path), is_kept=False, witness=witness)
    _log.tell_witness(path)

    def give_back() -> None:
        sys.stdout, sys.stderr = terminal

    # Ctrl-C may end the process in the midst of the imports.
    before_ending.extend((give_back, lambda: end(0)))
    _write_into(file)
    faulthandler.enable(terminal[1])
    # Both would look up sys.stderr each time.
    handler = logging.StreamHandler(sys.stderr)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(handler)
    logging.lastResort = handler
    # Waits for object storage and servers are ours to tell.
    ours = logging.getLogger("megaslm")
    ours.addHandler(logging.StreamHandler(terminal[1]))
    ours.propagate = False
    try:
        yield
    finally:
        give_back()


def keep_in(path: Path) -> bool:
    """Moves the log, if there is one, to the end of the file `path`. Raises OSError where it cannot be written.

    Returns:
        Whether the file holds anything.
    """
    if _log is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_into(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666))
    os.write(_OUTPUT, _log.path.read_bytes())
    _log.path.unlink()
    _log.path, _log.is_kept = path, True
    _log.tell_witness(str(path))
    return path.stat().st_size > 0


def end(status: int) -> Path | None:
    """Called before the process ends. An empty log is removed.

    Returns:
        The log that is left after a fault, where it holds anything.
    """
    global _log
    if _log is None:
        return None
    log, _log = _log, None
    log.tell_witness(_ENDED)
    # A user may have removed it.
    has_any = log.path.exists() and log.path.stat().st_size > 0
    if not has_any or (not log.is_kept and status != 1):
        log.path.unlink(missing_ok=True)
    if not has_any and log.is_kept:
        # Other ranks may have a log in the folder.
        with suppress(OSError):
            log.path.parent.rmdir()
    return log.path if status == 1 and has_any else None


def _copy(stream: TextIO, descriptor: int) -> TextIO:
    copy = os.fdopen(os.dup(descriptor), "w", encoding=stream.encoding, errors=stream.errors)
    copy.reconfigure(line_buffering=True)
    return copy


def _write_into(file: int) -> None:
    for descriptor in (_OUTPUT, _ERRORS):
        os.dup2(file, descriptor)
    os.close(file)
