"""The targets of a step: which are valid, what the dataset stores for them, and the values that they are sorted by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from megaslm.slm.draw import Draw
from megaslm.slm.formula import Formula
from megaslm.slm.keys import HASH_BITS, hash_of
from megaslm.slm.spans import span_means

Criterion = Literal[
    "excess", "reference", "entropy", "reference_and_entropy", "selected", "random", "loss", "student_entropy"
]
StaticCriterion = Literal["reference", "entropy", "random"]
_FORMULAS = {
    "excess": Formula(("loss", "ref_loss", "-")),
    "loss": Formula(("loss",)),
    "student_entropy": Formula(("entropy",)),
    "reference": Formula(("ref_loss", "neg()")),
    "entropy": Formula(("ref_entropy", "neg()")),
}


@dataclass(frozen=True)
class Targets:
    """The targets of R rows, those of a step or of a micro-batch; or the same targets in groups of n.

    `valid`: (R, L) bool. `keys`: (R, L) int64, unique over the step. `ref_loss`, `ref_entropy`: (R, L) float32 in
    nats, or None where the dataset has none. `selected`: (R, L) bool, the selection of a mask that was made before the
    run, or None. `before`, `after`: (R, L) int64, see `SpanRule.bounds`, or None where each target is sorted by its own
    value. `domain`: (R, L) int64, the numbers of domains, or None where these are unknown. `weight`: (R, L) float32,
    the stored weights, or None where the dataset has none. `columns`: (R, L) float32 each, further columns by name.
    `ref_top_logprob`, (R, L, K+1), and `ref_top_id`, (R, L, K): the reference's most likely tokens, or None where they
    are not read; groups leave them out.
    """

    valid: Tensor
    keys: Tensor
    ref_loss: Tensor | None = None
    ref_entropy: Tensor | None = None
    selected: Tensor | None = None
    before: Tensor | None = None
    after: Tensor | None = None
    domain: Tensor | None = None
    weight: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    ref_top_logprob: Tensor | None = None
    ref_top_id: Tensor | None = None

    def in_groups(self, count: int) -> "Targets":
        """Views of the same targets as (count, n)."""
        sorted_by = replace(self, ref_top_logprob=None, ref_top_id=None)
        return sorted_by._with(lambda part: part.reshape(count, -1))

    def in_domains(self, count: int) -> "Targets":
        """The same targets (count, n) times. In the group of a domain only its own are valid."""
        flat = self.in_groups(1)
        groups = flat._with(lambda part: part.expand(count, -1))
        own = self.needed_domain().flatten() == torch.arange(count, device=self.valid.device)[:, None]
        return replace(groups, valid=groups.valid & own)

    def micro_batches(self, count: int) -> list["Targets"]:
        """Views of `count` micro-batches, of equally many rows each."""
        size = len(self.valid) // count
        return [self[first : first + size] for first in range(0, len(self.valid), size)]

    def __getitem__(self, rows: slice) -> "Targets":
        return self._with(lambda part: part[rows])

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        """Each tensor changed."""
        parts = {name: change(part) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return Targets(**parts, columns={name: change(part) for name, part in self.columns.items()})

    def eligible(self, max_ref_loss: float | None) -> Tensor:
        """(R, L) bool: valid targets that may be selected, whose reference loss does not exceed the cap.

        A NaN reference loss stays eligible, so that the selection reports it.
        """
        return self.valid if max_ref_loss is None else self.valid & ~(self.needed_ref_loss() > max_ref_loss)

    def over_spans(self, values: Tensor) -> Tensor:
        """The mean values of the targets' spans: float32 in nats, in and out of the targets' shape. Without spans the
        values themselves."""
        if self.before is None or self.after is None:
            return values
        return span_means(values, self.valid, self.before, self.after)

    def needed(self, name: str) -> Tensor:
        """A column of the dataset that a criterion names.

        Raises:
            ValueError: the dataset has none.
        """
        own = {"ref_loss": self.ref_loss, "ref_entropy": self.ref_entropy, "weight": self.weight}
        found = {**self.columns, **own}.get(name)
        if found is None:
            raise ValueError(f"this selection needs the column {name} of every micro-batch")
        return found

    def needed_ref_loss(self) -> Tensor:
        """The reference's losses.

        Raises:
            ValueError: the dataset has none.
        """
        return self.needed("ref_loss")

    def needed_domain(self) -> Tensor:
        """The numbers of the domains.

        Raises:
            ValueError: they are unknown.
        """
        if self.domain is None:
            raise ValueError("this selection needs the domains of every micro-batch")
        return self.domain

    def needed_selected(self) -> Tensor:
        """The dataset's own selection.

        Raises:
            ValueError: the dataset has none.
        """
        if self.selected is None:
            raise ValueError("this selection needs the mask of every micro-batch")
        return self.selected

    def needed_weight(self) -> Tensor:
        """The stored weights.

        Raises:
            ValueError: the dataset has none.
        """
        if self.weight is None:
            raise ValueError("this objective needs the stored weights of every micro-batch")
        return self.weight

    def needed_top(self) -> tuple[Tensor, Tensor]:
        """The log-probabilities and ids of the reference's most likely tokens.

        Raises:
            ValueError: the dataset has none.
        """
        if self.ref_top_logprob is None or self.ref_top_id is None:
            raise ValueError("this objective needs the reference's most likely tokens of every micro-batch")
        return self.ref_top_logprob, self.ref_top_id


def in_any_group(marks: Tensor, count: int) -> Tensor:
    """(count,) bool: the targets that a (G, n) mask marks, where its groups hold each once or are those of
    `Targets.in_domains`."""
    return marks.view(-1, count).any(0)


def excess_loss(losses: Tensor, ref_loss: Tensor) -> Tensor:
    """The model's loss minus the reference's, in nats (Rho-1, equation 3). Any equal shapes."""
    return losses - ref_loss


@dataclass(frozen=True)
class Candidates:
    """Targets in groups, (G, n), and what sorts them: a criterion, and the noise of a draw.

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

        def value_of(name: str) -> Tensor:
            measured = _measured(name, losses, entropies)
            if measured is None:
                return self.targets.needed(name)
            return measured.reshape(-1, self.eligible.shape[1]).expand_as(self.eligible)

        values = self.targets.over_spans(self.formula.of(value_of))
        return values if self.draw is None else self.draw.perturbed(values, self.targets.keys)

    def values_at(self, losses: Tensor, rows: Tensor, entropies: Tensor | None = None) -> Tensor:
        """(n,) float32 values of some targets, where each is sorted by its own value.

        Args:
            losses: (n,) float32.
            rows: (n,) int64, their places among all G·n.
            entropies: (n,) float32, if the values depend on them.
        """

        def value_of(name: str) -> Tensor:
            measured = _measured(name, losses, entropies)
            return self.targets.needed(name).flatten()[rows] if measured is None else measured

        values = self.formula.of(value_of)
        return values if self.draw is None else self.draw.perturbed(values, self.targets.keys.flatten()[rows])

    def unsortable(self, values: Tensor) -> Tensor:
        """(G, n) bool: eligible targets whose value is NaN or infinite."""
        return self.eligible & ~torch.isfinite(values)


def formula_of(criterion: Criterion | Formula) -> Formula:
    """What a criterion sorts by, if that is one value per target that follows from losses, entropies and columns."""
    return criterion if isinstance(criterion, Formula) else _FORMULAS[criterion]


def static_values(criterion: StaticCriterion | Formula, targets: Targets, *, seed: int, step: int) -> Tensor:
    """Values that do not depend on the model: −ref_loss, −ref_entropy (Rho-1's self-reference), a formula of columns,
    or a hash of the key.

    Returns:
        float32, of the targets' shape.
    """
    if criterion == "random":
        # float32 holds 24 bits; keys break the resulting ties.
        return (hash_of(targets.keys, seed, step) >> (HASH_BITS - 24)).to(torch.float32)
    return targets.over_spans(formula_of(criterion).of(targets.needed))


def _measured(name: str, losses: Tensor, entropies: Tensor | None) -> Tensor | None:
    """What the model that is trained has for a name; None where a name is that of a column."""
    if name == "entropy":
        assert entropies is not None, "they were measured for this criterion"
        return entropies
    return losses if name == "loss" else None
