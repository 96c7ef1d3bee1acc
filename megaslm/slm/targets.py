"""The targets of a step: which are valid, what the dataset stores for them, and the values that they are sorted by."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from megaslm.slm.draw import Draw
from megaslm.slm.keys import HASH_BITS, hash_of
from megaslm.slm.spans import span_means

Criterion = Literal[
    "excess", "reference", "entropy", "reference_and_entropy", "selected", "random", "loss", "student_entropy"
]
StaticCriterion = Literal["reference", "entropy", "random"]
ModelCriterion = Literal["excess", "loss", "student_entropy"]
"""A criterion that depends on the model that is trained: on its losses, or on the entropies of its predictions."""


@dataclass(frozen=True)
class Targets:
    """The targets of R rows, those of a step or of a micro-batch; or the same targets in groups of n.

    `valid`: (R, L) bool. `keys`: (R, L) int64, unique over the step. `ref_loss`, `ref_entropy`: (R, L) float32 in
    nats, or None where the dataset has none. `selected`: (R, L) bool, the selection of a mask that was made before the
    run, or None. `before`, `after`: (R, L) int64, see `SpanRule.bounds`, or None where each target is sorted by its own
    value. `domain`: (R, L) int64, the numbers of domains, or None where these are unknown. `weight`: (R, L) float32,
    the stored weights, or None where the dataset has none. `ref_top_logprob`, (R, L, K+1), and `ref_top_id`, (R, L, K):
    the reference's most likely tokens, or None where they are not read; groups leave them out.
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
    ref_top_logprob: Tensor | None = None
    ref_top_id: Tensor | None = None

    def in_groups(self, count: int) -> "Targets":
        """Views of the same targets as (count, n)."""
        parts = {name: part for name, part in vars(self).items() if part is not None and part.dim() == 2}
        return Targets(**{name: part.reshape(count, -1) for name, part in parts.items()})

    def in_domains(self, count: int) -> "Targets":
        """The same targets (count, n) times. In the group of a domain only its own are valid."""
        flat = self.in_groups(1)
        groups = Targets(**{name: part.expand(count, -1) for name, part in vars(flat).items() if part is not None})
        own = self.needed_domain().flatten() == torch.arange(count, device=self.valid.device)[:, None]
        return replace(groups, valid=groups.valid & own)

    def micro_batches(self, count: int) -> list["Targets"]:
        """Views of `count` micro-batches, of equally many rows each."""
        size = len(self.valid) // count
        return [self[first : first + size] for first in range(0, len(self.valid), size)]

    def __getitem__(self, rows: slice) -> "Targets":
        return Targets(**{name: part[rows] for name, part in vars(self).items() if part is not None})

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

    def needed_ref_loss(self) -> Tensor:
        """The reference's losses.

        Raises:
            ValueError: the dataset has none.
        """
        if self.ref_loss is None:
            raise ValueError("this selection needs the reference's losses of every micro-batch")
        return self.ref_loss

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

    def needed_ref_entropy(self) -> Tensor:
        """The entropies of the reference's predictions.

        Raises:
            ValueError: the dataset has none.
        """
        if self.ref_entropy is None:
            raise ValueError("this selection needs the reference's entropies of every micro-batch")
        return self.ref_entropy

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

    `eligible`: (G, n) bool. `draw`: None where there is no noise.
    """

    targets: Targets
    eligible: Tensor
    criterion: ModelCriterion
    draw: Draw | None = None

    @property
    def by_entropy(self) -> bool:
        """Whether the model's entropies rank the targets in place of its losses."""
        return self.criterion == "student_entropy"

    def values(self, measured: Tensor) -> Tensor:
        """(G, n) float32 values from the losses, or entropies, of the G·n targets, or of n that are in each group."""
        measured = measured.reshape(-1, self.eligible.shape[1]).expand_as(self.eligible)
        if self.criterion == "excess":
            measured = excess_loss(measured, self.targets.needed_ref_loss())
        values = self.targets.over_spans(measured)
        return values if self.draw is None else self.draw.perturbed(values, self.targets.keys)

    def values_at(self, measured: Tensor, rows: Tensor) -> Tensor:
        """(n,) float32 values of some targets, where each is sorted by its own loss or entropy.

        Args:
            measured: (n,) float32, losses or entropies.
            rows: (n,) int64, their places among all G·n.
        """
        values = measured
        if self.criterion == "excess":
            values = excess_loss(measured, self.targets.needed_ref_loss().flatten()[rows])
        return values if self.draw is None else self.draw.perturbed(values, self.targets.keys.flatten()[rows])

    def unsortable(self, values: Tensor) -> Tensor:
        """(G, n) bool: eligible targets whose value is NaN or infinite."""
        return self.eligible & ~torch.isfinite(values)


def static_values(criterion: StaticCriterion, targets: Targets, *, seed: int, step: int) -> Tensor:
    """Values that do not depend on the model: −ref_loss, −ref_entropy (Rho-1's self-reference) or a hash of the key.

    Returns:
        float32, of the targets' shape.
    """
    match criterion:
        case "reference":
            return targets.over_spans(-targets.needed_ref_loss())
        case "entropy":
            return targets.over_spans(-targets.needed_ref_entropy())
        case "random":
            # float32 holds 24 bits; keys break the resulting ties.
            return (hash_of(targets.keys, seed, step) >> (HASH_BITS - 24)).to(torch.float32)
