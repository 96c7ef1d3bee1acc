"""What the verbs have in common: options of several of them, and what they print, once for all ranks."""

import gc
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from megaslm.engine.seat import ALONE, Seat, seat_in
from megaslm.errors import BrokenLibrary, ConfigError, MegaSLMError

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be given several times.")
]

_NEEDLESS = "Setting accelerator to CPU"
_seat = ALONE
"""This process's seat. Verbs that run on many ranks take it. Other verbs run as one process under any environment."""


def take_seat() -> Seat:
    """Called before any output that all ranks have in common, so that only one rank prints it."""
    global _seat
    _seat = seat_in(os.environ)
    return _seat


def is_first_rank() -> bool:
    """Whether this process prints what all ranks have in common."""
    return _seat.rank == 0


def write_json(path: Path | None, value: object) -> None:
    """Writes a verb's result, if a file was given. Raises ConfigError where it cannot be written."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--json {path}: cannot be written ({error.strerror}), the work itself is done; name another file"
        ) from error


def leave_out_needless_lines() -> None:
    """Keeps DeepSpeed from telling, between our lines, that it runs on CPUs. Called before anything imports it."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith(_NEEDLESS))


def write_whole_lines() -> None:
    """Hands each printed line over in one write, so that ranks which share an output do not break each other's lines.

    Python would write a line and its end one after the other where PYTHONUNBUFFERED is set, as images of containers do.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(write_through=False, line_buffering=True)


def announce(verb: str, work: str) -> None:
    """Prints the first line of a command that works for longer: what it reads and writes, once for all ranks.

    Called before the imports that take seconds.
    """
    say(f"{verb} · {work}")


def say(line: str) -> None:
    """Prints a line at once, once for all ranks."""
    if is_first_rank():
        # A full disk under the output must not end a run. The line is flushed: the next one may be seconds away.
        with suppress(OSError):
            print(line, flush=True)


@contextmanager
def loading(verb: str, *, before: str = "") -> Iterator[None]:
    """Announces the imports within the context, which take seconds. What libraries print goes to a log from now on.

    Raises BrokenLibrary where an import fails.
    """
    announce(verb, f"{before}loads PyTorch and DeepSpeed, which takes up to a minute")

    from megaslm.observe.third_party_output import diverted

    with diverted(verb), lasting():
        try:
            yield
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            raise BrokenLibrary(error) from error


@contextmanager
def lasting() -> Iterator[None]:
    """What is made within the context stays to the end: no garbage collection looks through it, then or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_third_party_output(status: int) -> None:
    """Called before the process ends. After a fault, names the log of what libraries printed."""
    third_party_output = sys.modules.get("megaslm.observe.third_party_output")
    log = None if third_party_output is None else third_party_output.end(status)
    if log is not None and is_first_rank():
        typer.echo(f"what PyTorch and DeepSpeed printed: {log}", err=True)


def say_warnings(lines: Sequence[str]) -> None:
    """Prints warnings, once for all ranks."""
    if is_first_rank():
        for line in lines:
            typer.echo(f"warning: {line}", err=True)


def say_on_stderr(verb: str, line: str) -> None:
    """Prints a line beside the results of a command, once for all ranks: what it reads, or why it waits."""
    if is_first_rank():
        typer.echo(f"{verb} · {line}", err=True)


def say_interrupted() -> None:
    """Prints what ended a verb that has nothing to resume, once for all ranks."""
    if is_first_rank():
        typer.echo("ended by Ctrl-C", err=True)


def complain(error: MegaSLMError) -> None:
    """Prints the message of an error, once where every rank has the same."""
    if is_first_rank():
        typer.echo(f"{type(error).__name__}: {error}", err=True)
    elif not error.is_known_to_all_ranks:
        typer.echo(f"rank {_seat.rank}: {type(error).__name__}: {error}", err=True)
