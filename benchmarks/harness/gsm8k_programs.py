"""Conversations in ToRA's format, made from the calculations that GSM8K's solutions are annotated with.

`48/2 = <<48/2=24>>24 clips` holds the expression 48/2 and its value 24. Each annotation becomes one line of a program.
A number that is the value of an earlier line is written as the name of that line.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megaslm.evaluation.answering import shown
from megaslm.sandbox.result import Ending, ProgramResult
from megaslm.sandbox.sandbox import Sandbox

_ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_SIGN = re.compile(r"\s*([-+*/])\s*")
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_RELATIVE_TOLERANCE = 1e-4
_PROGRAMS_AT_ONCE = 500


@dataclass(frozen=True)
class Problem:
    """A question, and a solution that ends in a line `#### answer`."""

    question: str
    annotated: str

    @property
    def answer(self) -> str:
        return self.annotated.rpartition("####")[2].strip().replace(",", "")

    @property
    def solution(self) -> str:
        """The solution as people read it."""
        return _ANNOTATION.sub("", self.annotated)

    def program(self) -> str | None:
        """One line for each annotation, and one that prints the last value; None without annotations."""
        lines: list[str] = []
        names: dict[str, str] = {}
        for expression, value in _ANNOTATION.findall(self.annotated):
            named = _NUMBER.sub(lambda found: names.get(_plain(found[0]), _plain(found[0])), expression)
            name = f"step_{len(lines) + 1}"
            lines.append(f"{name} = " + _SIGN.sub(r" \1 ", named.strip()))
            names[_plain(value)] = name
        return "\n".join([*lines, f"print(step_{len(lines)})"]) if lines else None


@dataclass(frozen=True)
class Conversations:
    """Messages of each problem whose program gave the right answer, and why the others were left out."""

    messages: tuple[list[dict[str, str]], ...]
    left_out: Counter[str]


def conversations(problems: Iterable[Problem], sandbox: Sandbox) -> Conversations:
    """Runs the program of each problem, and keeps those that print the right answer."""
    found: list[list[dict[str, str]]] = []
    left_out: Counter[str] = Counter()
    with_programs: list[tuple[Problem, str]] = []
    for problem in problems:
        program = problem.program()
        if program is None:
            left_out["no annotation"] += 1
        else:
            with_programs.append((problem, program))
    for (problem, program), result in zip(with_programs, _run(with_programs, sandbox), strict=True):
        if result.ending != Ending.DONE:
            left_out["the program fails"] += 1
        elif not _is_right(result.stdout, problem.answer):
            left_out["another answer"] += 1
        else:
            found.append(_messages(problem, program, result))
    return Conversations(tuple(found), left_out)


def _run(programs: Sequence[tuple[Problem, str]], sandbox: Sandbox) -> Iterable[ProgramResult]:
    for start in range(0, len(programs), _PROGRAMS_AT_ONCE):
        yield from sandbox.run([program for _, program in programs[start : start + _PROGRAMS_AT_ONCE]])


def _messages(problem: Problem, program: str, result: ProgramResult) -> list[dict[str, str]]:
    steps = program.count("\n")
    answer = (
        f"This takes {steps} {'step' if steps == 1 else 'steps'}.\n"
        f"```python\n{program}\n```\n"
        f"```output\n{shown(result)}\n```\n"
        f"The answer is $\\boxed{{{problem.answer}}}$."
    )
    return [{"role": "user", "content": problem.question}, {"role": "assistant", "content": answer}]


def _is_right(output: str, answer: str) -> bool:
    try:
        return math.isclose(float(output), float(answer), rel_tol=_RELATIVE_TOLERANCE)
    except ValueError:
        return False


def _plain(number: str) -> str:
    """The same number without zeros that Python refuses or that only lengthen it."""
    try:
        return f"{float(number):.10g}"
    except ValueError:
        return number
