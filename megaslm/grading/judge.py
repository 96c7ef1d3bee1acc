"""A process that grades answers. Where an answer takes it too long it is killed, and the next answer starts another.

Parsers and simplifiers of mathematics may take forever, or all memory, over an answer that a model wrote.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Literal, cast, get_args

from megaslm.errors import GradingError
from megaslm.grading.answers import final_answer, normalised

Grader = Literal["strict", "rho", "tora"]
GRADERS: tuple[Grader, ...] = get_args(Grader)
"""`strict` is math-verify. `rho` and `tora` are rules of published results, see `megaslm.grading.answers`."""
Verdict = Literal["right", "wrong", "ungradable"]

PATIENCE_SECONDS = 10.0
_START_SECONDS = 120.0
_MEMORY_BYTES = 4 << 30
_READY = "ready"


def answer_of(output: str, grader: Grader) -> str:
    """The answer that a grader reads in a model's output; empty where there is none."""
    if grader == "strict":
        return final_answer(output, "rho")
    return normalised(final_answer(output, grader), grader)


class Judge:
    """Grades with one grader, in a process of its own. Used as a context manager."""

    def __init__(self, grader: Grader, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """`patience_seconds`: how long one answer may take; longer ones are ungradable."""
        self.grader = grader
        self._patience_seconds = patience_seconds
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Judge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def verdict(self, answer: str, reference: str) -> Verdict:
        """Whether an answer, from `answer_of`, equals the reference answer as its data set gives it.

        Raises:
            GradingError: the process cannot start, or the library that reads LaTeX does not work in it.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([answer, reference]) + "\n")
            process.stdin.flush()
            said = _line(process, self._patience_seconds)
        except BrokenPipeError:
            said = None
        if said is None:  # It took too long, or all memory, or it crashed.
            self._end()
            return "ungradable"
        return cast(Verdict, said)

    def _start(self) -> subprocess.Popen[str]:
        # -P: a user's folder may have a file named json.py.
        command = [sys.executable, "-P", "-m", "megaslm.grading.judge", self.grader]
        # The process inherits the mask. Ctrl-C would end it in the midst of an answer, which would be ungradable then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if _line(self._process, _START_SECONDS) != _READY:
            said = self._end()
            raise GradingError(f"the grader {self.grader} does not start: {said or 'it ended without a word'}")
        return self._process

    def _end(self) -> str:
        """Kills the process, and returns the last line of its errors."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        _, errors = process.communicate()
        return errors.strip().rpartition("\n")[2]


def _line(process: subprocess.Popen[str], patience_seconds: float) -> str | None:
    """The next line of a process that writes one line at a time; None where it says nothing in time, or has ended."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], patience_seconds)
    return (process.stdout.readline().strip() or None) if ready else None


def main(grader: Grader) -> None:
    """The process: reads pairs of answer and reference, a line of JSON each, and writes a line with each verdict."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    equal = _equality(grader)
    # Parsers print. Only verdicts may come through the pipe, and nobody empties the one of stderr.
    verdicts = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    verdicts.write(f"{_READY}\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    for line in sys.stdin:
        answer, reference = json.loads(line)
        try:
            verdict: Verdict = "right" if equal(answer, reference) else "wrong"
        except Exception:  # math-verify and sympy raise any exception for odd mathematics.
            verdict = "ungradable"
        verdicts.write(f"{verdict}\n")


def _equality(grader: Grader) -> Callable[[str, str], bool]:
    """Imports here, because they take longer than a second, and the parent needs none of them."""
    if grader == "strict":
        from megaslm.grading.strict import strictly_equal

        return strictly_equal
    from sympy.parsing.latex import parse_latex

    from megaslm.grading.equality import equal

    try:
        half = str(parse_latex(r"\frac{1}{2}"))
    except ImportError as error:
        half = str(error)
    if half != "1/2":
        # Each version of the runtime reads the grammars of one version of the generator.
        sys.exit(
            "sympy cannot read LaTeX, so that LaTeX answers would be graded as wrong: install "
            f"antlr4-python3-runtime==4.11.0 ({half.strip()})"
        )
    return lambda answer, reference: equal(answer, normalised(reference, grader), grader)


if __name__ == "__main__":
    main(cast(Grader, sys.argv[1]))
