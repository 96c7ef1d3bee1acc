"""How an output is graded: the answer in it, and whether that is the right one."""

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from megaslm.config.task import Grader
from megaslm.grading.answers import final_answer
from megaslm.grading.judge import Judge, Verdict, answer_of

_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Ja-j])\)?(?![A-Za-z])")


class Grades(Protocol):
    """Grades answers."""

    def verdict(self, answer: str, reference: str) -> Verdict:
        """Whether the answer equals the reference answer."""
        ...


class _Letters:
    def verdict(self, answer: str, reference: str) -> Verdict:
        return "right" if answer and answer == letter_of(reference) else "wrong"


def extracted(output: str, grader: Grader) -> str:
    """The answer that a grader reads in an output; empty where there is none."""
    return letter_of(final_answer_text(output)) if grader == "letter" else answer_of(output, grader)


def final_answer_text(output: str) -> str:
    """The part of an output that names a choice: what is boxed or follows "he answer is", else the whole output."""
    named = "boxed" in output or "he answer is" in output
    return final_answer(output, "rho") if named else output


def letter_of(text: str) -> str:
    """The last letter that stands alone, in upper case; empty where there is none."""
    letters = _LETTER.findall(text)
    return letters[-1].upper() if letters else ""


def grading(grader: Grader) -> AbstractContextManager[Grades]:
    """Grades while the context lasts; the graders of mathematics have a process of their own."""
    return nullcontext(_Letters()) if grader == "letter" else Judge(grader)
