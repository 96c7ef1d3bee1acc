"""Whether two normalised answers are equal, under the rules by which published results were graded.

Parsing and simplifying may take forever or all memory: `megaslm.grading.judge` does it in a process that it can kill.
"""

import re
from contextlib import suppress
from functools import lru_cache
from math import isclose
from typing import Any

from sympy import N, simplify
from sympy.parsing.latex import parse_latex
from sympy.parsing.sympy_parser import parse_expr

from megaslm.grading.answers import Rules

# `parse_expr` runs its text as Python. So it sees numbers, operators, single letters and these names only.
_NAMES = {"pi", "sqrt", "sin", "cos", "tan", "sec", "csc", "cot", "log", "ln", "exp", "oo", "abs", "Abs"}
_HARMLESS = re.compile(r"[\d\sA-Za-z+\-*/^(),.=]*")


def equal(prediction: str, reference: str, rules: Rules) -> bool:
    """Whether a normalised prediction equals the normalised reference answer."""
    numbers = _number(prediction), _number(reference)
    if numbers[0] is not None and numbers[1] is not None:
        # A percentage may be given as a share, and the other way round.
        return any(_numbers_equal(numbers[0], numbers[1] * factor, rules) for factor in (0.01, 1.0, 100.0))
    if not prediction:
        return False
    if rules == "rho" and "pmatrix" in prediction and "pmatrix" not in reference:
        reference = _matrices(reference)
    if _bare(prediction, reference, rules) == _bare(reference, prediction, rules):
        return True
    return _elements_equal(prediction, reference, rules) or _symbols_equal(prediction, reference, rules)


def _number(text: str) -> float | None:
    with suppress(ValueError):
        return float(text.replace(",", ""))
    return None


def _numbers_equal(prediction: float, reference: float, rules: Rules) -> bool:
    """`tora`: within 1e-4. `rho`: after rounding the prediction to the digits of the reference."""
    if rules == "tora":
        return isclose(reference, prediction, rel_tol=1e-4)
    with suppress(OverflowError, ValueError):  # Infinity and NaN cannot be rounded.
        if reference.is_integer():
            return isclose(reference, round(prediction), abs_tol=1e-4)
        return isclose(reference, round(prediction, len(str(reference).split(".")[-1])), rel_tol=1e-6)
    return False


def _matrices(text: str) -> str:
    """Lists in braces as column vectors."""
    lists = re.findall(r"\{.*,.*\}", text.strip())
    columns = (found.strip("{}").replace(",", "\\") for found in lists)
    return ", ".join(f"\\begin{{pmatrix}}{column}\\end{{pmatrix}}" for column in columns)


def _bare(text: str, other: str, rules: Rules) -> str:
    """Without braces and parentheses, which answers write or leave out; brackets go where one side alone has them."""
    for one, two in ((text, other), (other, text)):
        if (_enclosed(one, "[]") and not two.startswith("(")) or (_enclosed(one, "()") and not two.startswith("[")):
            text = text.strip("[]()")
    text = re.sub(r"[{}()]", "", text)
    return text.lower() if rules == "rho" else text


def _enclosed(text: str, pair: str) -> bool:
    return text.startswith(pair[0]) and text.endswith(pair[1])


def _elements_equal(prediction: str, reference: str, rules: Rules) -> bool:
    """Two points or intervals, element by element."""
    if not any(_enclosed(prediction, pair) and _enclosed(reference, pair) for pair in ("[]", "()")):
        return False
    elements = [text[1:-1].split(",") for text in (prediction, reference)]
    return len(elements[0]) == len(elements[1]) and all(
        equal(one, two, rules) for one, two in zip(elements[0], elements[1], strict=True)
    )


def _symbols_equal(prediction: str, reference: str, rules: Rules) -> bool:
    one, two = _parsed(prediction), _parsed(reference)
    if one is None or two is None:
        return False
    with suppress(Exception):  # sympy raises any exception for expressions that make no sense together.
        if rules == "rho" and (str(one) == str(two) or one == two or one.equals(two)):
            return True
    with suppress(Exception):
        if simplify(one - two) == 0:
            return True
    if rules == "rho" and (_equations_equal(one, two) or _rounded_matrices_equal(one, two)):
        return True
    with suppress(Exception):
        values = float(N(one)), float(N(two))
        return isclose(*values, rel_tol=1e-3) if rules == "tora" else _numbers_equal(*values, rules)
    return False


def _equations_equal(one: Any, two: Any) -> bool:
    with suppress(Exception):
        return bool(abs(one.lhs - one.rhs).equals(abs(two.lhs - two.rhs)))
    return False


def _rounded_matrices_equal(one: Any, two: Any) -> bool:
    with suppress(Exception):
        rounded = [matrix.applyfunc(lambda element: round(element, 3)) for matrix in (one, two)]
        return bool(one.shape == two.shape and rounded[0].equals(rounded[1]))
    return False


# The samples of one item are compared with one reference, and many of them are alike.
@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    """A sympy expression; None where the text cannot be read as one. Sympy would run a text that it is given later."""
    with suppress(Exception):  # antlr and sympy raise any exception for texts that are not mathematics.
        return parse_latex(text)
    names = re.findall(r"[A-Za-z]+", text)
    if _HARMLESS.fullmatch(text) and all(len(name) == 1 or name in _NAMES for name in names):
        with suppress(Exception):
            return parse_expr(text)
    return None
