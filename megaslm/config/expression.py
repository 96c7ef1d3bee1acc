"""Criteria that are expressions, such as `loss - ref_loss`: arithmetic over what is known of a target.

The text is parsed, and nothing in it is executed. What is not on the white list is refused.
"""

import ast
import keyword
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator

from megaslm.errors import ConfigError

NamedCriterion = Literal[
    "excess", "reference", "entropy", "reference_and_entropy", "selected", "random", "loss", "student_entropy"
]
OF_MODEL = ("loss", "entropy")
"""The names that stand for the model that is trained: its loss of a target, the entropy of its prediction."""
FUNCTIONS = ("abs", "min", "max")
_NAME = r"[a-z][a-z0-9_]{0,39}"
_COLUMNS = (
    "tokens",
    "domain",
    "target_mask",
    "ref_loss",
    "ref_entropy",
    "ref_top_logprob",
    "ref_top_id",
    "weight",
)
_TAKEN = {*get_args(NamedCriterion), *FUNCTIONS, *_COLUMNS}
Term = str | float
_MOST_CHARACTERS = 200
# Values are float32.
_LARGEST = 3.4e38
_Fold = Callable[[float, float], float]
_OPERATORS: dict[type[ast.operator], tuple[str, _Fold]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_OF_TWO: dict[str, _Fold] = {"min": min, "max": max}


@dataclass(frozen=True)
class Expression:
    """A criterion that is an expression.

    `terms`: in postfix order, numbers, names, and the operators `+`, `-`, `*`, `/`, `neg()`, `abs()`, `min()` and
    `max()`, which take one operand or two.
    """

    terms: tuple[Term, ...]

    @property
    def names(self) -> frozenset[str]:
        """What it names, without the functions."""
        return frozenset(term for term in self.terms if isinstance(term, str) and term.isidentifier())

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the dataset that it names."""
        return self.names - frozenset(OF_MODEL)


def column_named(name: str) -> str:
    """The name that `--as` gives to a column of losses, by which expressions name it.

    Raises ConfigError where it cannot be one.
    """
    if not re.fullmatch(_NAME, name):
        raise ConfigError(f"--as {name}: must begin with a-z and hold a-z, 0-9 and _, at most 40 characters")
    if name in {*_TAKEN, "self"} or keyword.iskeyword(name):
        raise ConfigError(f"--as {name}: has a meaning in an expression or a dataset already; choose another name")
    return name


@lru_cache
def expression_of(criterion: str) -> Expression | None:
    """The expression that a criterion is; None if it is one of the named criteria.

    Raises ValueError where it is neither.
    """
    if criterion in get_args(NamedCriterion):
        return None
    named = f"must be one of {', '.join(get_args(NamedCriterion))}, or an expression such as loss - ref_loss"
    if len(criterion) > _MOST_CHARACTERS:
        raise ValueError(f"{named}, of at most {_MOST_CHARACTERS} characters; found {len(criterion)}")
    try:
        tree = ast.parse(criterion.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{named}; found {criterion!r}, which cannot be parsed") from error
    # A lone name would let every misspelt criterion pass.
    if isinstance(tree, ast.Name):
        raise ValueError(f"{named}; found {criterion!r}")
    found = Expression(_terms(tree))
    if not found.names:
        raise ValueError(f"{named}; {criterion!r} is the same number for every target")
    return found


def _checked(criterion: str) -> str:
    expression_of(criterion)
    return criterion


Criterion = Annotated[NamedCriterion | str, AfterValidator(_checked)]
"""A named criterion or an expression."""


def _terms(node: ast.expr) -> tuple[Term, ...]:
    match node:
        case ast.Name(id=name) if name not in FUNCTIONS:
            return (name,)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return (_in_range(float(value), node),)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            terms = _terms(operand)
            return (-terms[0],) if isinstance(terms[0], float) and len(terms) == 1 else (*terms, "neg()")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _joined(*_OPERATORS[type(op)], [left, right], node)
        case ast.Call(func=ast.Name(id="abs"), args=[operand], keywords=[]):
            terms = _terms(operand)
            return (abs(terms[0]),) if isinstance(terms[0], float) and len(terms) == 1 else (*terms, "abs()")
        case ast.Call(func=ast.Name(id=name), args=[_, _, *_] as operands, keywords=[]) if name in _OF_TWO:
            return _joined(f"{name}()", _OF_TWO[name], operands, node)
    raise ValueError(
        f"an expression holds names, numbers, + - * / and parentheses, abs of one value, and min and max of several; "
        f"found {ast.unparse(node)!r}"
    )


def _joined(symbol: str, fold: _Fold, operands: Sequence[ast.expr], node: ast.expr) -> tuple[Term, ...]:
    """Several operands, from left to right. Two numbers are joined to one."""

    def join(left: tuple[Term, ...], right: tuple[Term, ...]) -> tuple[Term, ...]:
        match left, right:
            case (_, (0.0,)) if symbol == "/":
                raise ValueError(f"{ast.unparse(node)!r} divides by 0")
            case ((float() as one,), (float() as other,)):
                return (_in_range(fold(one, other), node),)
        return (*left, *right, symbol)

    return reduce(join, map(_terms, operands))


def _in_range(value: float, node: ast.expr) -> float:
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{ast.unparse(node)!r} is too large for float32")
    return value
