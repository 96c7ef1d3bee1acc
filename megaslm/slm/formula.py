"""A criterion that is an arithmetic expression, evaluated on tensors in float32, operation by operation."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

OF_MODEL = ("loss", "entropy")
"""The names that stand for the model that is trained: its loss of a target, the entropy of its prediction."""
_OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {"neg()": torch.neg, "abs()": torch.abs}
_OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "min()": torch.minimum,
    "max()": torch.maximum,
}


@dataclass(frozen=True)
class Formula:
    """An expression in postfix order.

    `terms`: names of values, numbers, and the operators `+`, `-`, `*`, `/`, `neg()`, `abs()`, `min()`, `max()`; at
    least one name.
    """

    terms: tuple[str | float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The values that it names, each once."""
        operators = _OF_ONE.keys() | _OF_TWO.keys()
        return tuple(dict.fromkeys(term for term in self.terms if isinstance(term, str) and term not in operators))

    @property
    def needs_model(self) -> bool:
        """Whether it depends on the model that is trained."""
        return not set(self.names).isdisjoint(OF_MODEL)

    def of(self, value_of: Callable[[str], Tensor]) -> Tensor:
        """The values of targets, from those of each name; all of one shape. A division by 0 gives infinity or NaN."""
        values = {name: value_of(name) for name in self.names}
        some = next(iter(values.values()))
        stack: list[Tensor] = []
        for term in self.terms:
            if not isinstance(term, str):
                # As a tensor on the device: torch divides by a number of the host as it multiplies by its reciprocal.
                stack.append(some.new_full((), term))
            elif term in _OF_ONE:
                stack.append(_OF_ONE[term](stack.pop()))
            elif term in _OF_TWO:
                right, left = stack.pop(), stack.pop()
                stack.append(_OF_TWO[term](left, right))
            else:
                stack.append(values[term])
        (value,) = stack
        return value
