"""What targets are sorted by (`slm.criterion`): a formula of losses, entropies and columns, and the noise of a draw."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from megaslm.slm.keys import HASH_BITS, hash_of
from megaslm.slm.targets import Targets

Criterion = Literal[
    "excess", "reference", "entropy", "reference_and_entropy", "selected", "random", "loss", "student_entropy"
]
StaticCriterion = Literal["reference", "entropy", "random"]
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
    """An arithmetic expression in postfix order, evaluated on tensors in float32, operation by operation.

    `terms`: names of values, numbers, and the operators `+`, `-`, `*`, `/`, `neg()`, `abs()`, `min()`, `max()`; at
    least one name.
    """

    terms: tuple[str | float, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The values that it names, each once."""
        operators = _OF_ONE.keys() | _OF_TWO.keys()
        return tuple(dict.fromkeys(term for term in self.terms if isinstance(term, str) and term not in operators))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Those of them that are columns of the dataset."""
        return tuple(name for name in self.names if name not in OF_MODEL)

    @property
    def needs_model(self) -> bool:
        """Whether it depends on the model that is trained."""
        return self.columns != self.names

    def of(self, values: Mapping[str, Tensor]) -> Tensor:
        """The values of targets, from those of each name; all of one shape. A division by 0 gives infinity or NaN."""
        stack: list[Tensor] = []
        for term in self.terms:
            if not isinstance(term, str):
                # As a tensor on the device: torch divides by a number of the host as it multiplies by its reciprocal.
                stack.append(values[self.names[0]].new_full((), term))
            elif term in _OF_ONE:
                stack.append(_OF_ONE[term](stack.pop()))
            elif term in _OF_TWO:
                right, left = stack.pop(), stack.pop()
                stack.append(_OF_TWO[term](left, right))
            else:
                stack.append(values[term])
        (value,) = stack
        return value

    def at(self, rows: Tensor, targets: Targets, losses: Tensor, entropies: Tensor | None = None) -> Tensor:
        """The values of some targets, (n,) float32.

        Args:
            rows: (n,) int64, their places among all targets.
            targets: all of them.
            losses: (n,) float32.
            entropies: (n,) float32, if the values depend on them.
        """
        columns = {name: targets.column(name).flatten()[rows] for name in self.columns}
        return self.of({**columns, **_measured(losses, entropies)})


_FORMULAS = {
    # Rho-1, equation 3.
    "excess": Formula(("loss", "ref_loss", "-")),
    "loss": Formula(("loss",)),
    "student_entropy": Formula(("entropy",)),
    "reference": Formula(("ref_loss", "neg()")),
    "entropy": Formula(("ref_entropy", "neg()")),
}


def formula_of(criterion: Criterion | Formula) -> Formula:
    """What a criterion sorts by, if that is one value per target that follows from losses, entropies and columns."""
    return criterion if isinstance(criterion, Formula) else _FORMULAS[criterion]


def _measured(losses: Tensor, entropies: Tensor | None) -> dict[str, Tensor]:
    return {"loss": losses} if entropies is None else {"loss": losses, "entropy": entropies}


@dataclass(frozen=True)
class Draw:
    """Sampling without replacement as a top k: noise that a hash of the key gives, so that every layout draws alike.

    `temperature`: in nats.
    """

    temperature: float
    seed: int
    step: int

    def perturbed(self, values: Tensor, keys: Tensor) -> Tensor:
        """value / temperature + Gumbel noise. The k largest are a sample of k targets, drawn one by one, without
        replacement, in proportion to exp(value / temperature) (Kool, van Hoof, Welling: Stochastic beams, 2019).

        Args:
            values: float32 in nats, of any shape.
            keys: int64 of the same shape.

        Returns:
            float32 of the same shape, NaN or infinite where the value is.
        """
        uniform = (hash_of(keys, self.seed, self.step).double() + 0.5) / (1 << HASH_BITS)
        return (values.double() / self.temperature - (-uniform.log()).log()).float()


@dataclass(frozen=True)
class Candidates:
    """Targets in groups, (G, n), and what sorts them.

    `eligible`: (G, n) bool. `formula`: depends on the model. `draw`: None where there is no noise.
    """

    targets: Targets
    eligible: Tensor
    formula: Formula
    draw: Draw | None = None

    @property
    def by_entropy(self) -> bool:
        """Whether the values depend on the entropies of the model's predictions."""
        return "entropy" in self.formula.names

    def values(self, losses: Tensor, entropies: Tensor | None = None) -> Tensor:
        """(G, n) float32 values from the losses of the G·n targets, or of n that are in each group; and from the
        entropies, if it is by them."""
        shape = self.eligible.shape
        columns = {name: self.targets.column(name) for name in self.formula.columns}
        measured = {
            name: part.reshape(-1, shape[1]).expand(shape) for name, part in _measured(losses, entropies).items()
        }
        values = self.targets.over_spans(self.formula.of({**columns, **measured}))
        return values if self.draw is None else self.draw.perturbed(values, self.targets.keys)

    def values_at(self, losses: Tensor, rows: Tensor, entropies: Tensor | None = None) -> Tensor:
        """(n,) float32 values of some targets, where each is sorted by its own value; see `Formula.at`."""
        values = self.formula.at(rows, self.targets, losses, entropies)
        return values if self.draw is None else self.draw.perturbed(values, self.targets.keys.flatten()[rows])

    def unsortable(self, values: Tensor) -> Tensor:
        """(G, n) bool: eligible targets whose value is NaN or infinite."""
        return self.eligible & ~torch.isfinite(values)
