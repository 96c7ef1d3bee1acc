"""The targets of a step: which are valid, what the dataset stores for them, and the values that they are sorted by."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megaslm.slm.keys import HASH_BITS, hash_of
from megaslm.slm.spans import span_means

Criterion = Literal["excess", "reference", "entropy", "reference_and_entropy", "random", "loss"]
StaticCriterion = Literal["reference", "entropy", "random"]
LossCriterion = Literal["excess", "loss"]


@dataclass(frozen=True)
class Targets:
    """The targets of R rows, those of a step or of a micro-batch; or the same targets in groups of n.

    `valid`: (R, L) bool. `keys`: (R, L) int64, unique over the step. `ref_loss`, `ref_entropy`: (R, L) float32 in
    nats, or None where the dataset has none. `selected`: (R, L) bool, the selection of a mask that was made of both
    before the run, or None. `before`, `after`: (R, L) int64, see `SpanRule.bounds`, or None where each target is sorted
    by its own value.
    """

    valid: Tensor
    keys: Tensor
    ref_loss: Tensor | None = None
    ref_entropy: Tensor | None = None
    selected: Tensor | None = None
    before: Tensor | None = None
    after: Tensor | None = None

    def in_groups(self, count: int) -> "Targets":
        """Views of the same targets as (count, n)."""
        return Targets(**{name: part.reshape(count, -1) for name, part in vars(self).items() if part is not None})

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

    def needed_ref_entropy(self) -> Tensor:
        """The entropies of the reference's predictions.

        Raises:
            ValueError: the dataset has none.
        """
        if self.ref_entropy is None:
            raise ValueError("this selection needs the reference's entropies of every micro-batch")
        return self.ref_entropy


def excess_loss(losses: Tensor, ref_loss: Tensor) -> Tensor:
    """The model's loss minus the reference's, in nats (Rho-1, equation 3). Any equal shapes."""
    return losses - ref_loss


@dataclass(frozen=True)
class RankedTargets:
    """Targets in groups, (G, n), and the criterion that they are sorted by. `eligible`: (G, n) bool."""

    targets: Targets
    eligible: Tensor
    criterion: LossCriterion

    def values(self, losses: Tensor) -> Tensor:
        """(G, n) float32 values from losses of the same number."""
        losses = losses.view_as(self.eligible)
        if self.criterion == "excess":
            losses = excess_loss(losses, self.targets.needed_ref_loss())
        return self.targets.over_spans(losses)

    def unrankable(self, values: Tensor) -> Tensor:
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
