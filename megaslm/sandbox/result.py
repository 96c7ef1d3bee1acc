"""What running a program gave."""

from dataclasses import dataclass
from enum import StrEnum


class Ending(StrEnum):
    """How a program ended."""

    DONE = "done"
    ERROR = "error"
    """An exception, or an exit status other than 0."""
    TIMED_OUT = "timed out"
    KILLED = "killed"
    """By a signal: a crash of the interpreter, or the kernel's answer to a limit."""
    OUTPUT_TOO_LONG = "output too long"


@dataclass(frozen=True)
class ProgramResult:
    """What a program printed, and how it ended.

    `stdout` is the standard output as UTF-8, with U+FFFD for other bytes: all of it, or the first 4 MB. `error` is one
    line, and None for a program that is done: the last line of the traceback or "Timeout Error", which are ToRA's
    conventions, or what ended the program.
    """

    ending: Ending
    stdout: str
    error: str | None
