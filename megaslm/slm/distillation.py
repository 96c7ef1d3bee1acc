"""Distillation (`slm.distill`): rows that are drawn to the stored predictions of another model, in the head's own pass.

The reference's prediction is stored as its K most likely tokens and one more bucket for all others. The model's is
brought into the same K + 1 buckets, and with a temperature T both are raised to the power 1/T and normalised there. So
nothing is lost of what is stored, and no probability is invented for a token that is not. The sum over the bucket of
the others needs no other pass: the head has the exponentials of the row. With q the model's buckets and t those of the
reference, the derivative of T²·KL(t ‖ q) by a logit is T·(q − t) at a top token, and T·(q − t) of the bucket times the
token's share of it elsewhere. To renormalise the K tokens alone would leave the model free to put any probability on
the others, and top-K targets are biased as it is (arXiv 2503.16870).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaslm.slm.head_pass import Softmax, SoftRows
from megaslm.slm.targets import Targets

# The least probability of a bucket: its reciprocal is finite in float32.
_LEAST = 1e-30


@dataclass(frozen=True, eq=False)
class Teacher:
    """What rows are drawn to.

    `log_probabilities`: (T, K+1) of any floating dtype in nats, the last one of all tokens but the K. `ids`: (T, K)
    integers. `share`: w, of the divergence in a row's loss. `temperature`: T. `of_others`: whether the divergence is
    that of the rows which are not selected; these then have no cross-entropy, and the selected ones nothing else.
    """

    log_probabilities: Tensor
    ids: Tensor
    share: float
    temperature: float
    of_others: bool


class Distilled:
    """The divergences of the rows of one call to the head and their derivatives, noted chunk by chunk: T·(K + 3)
    numbers."""

    def __init__(self, teacher: Teacher, own: Tensor) -> None:
        """`own`: (T,) of the rows, for their number and dtype."""
        self._teacher = teacher
        count = teacher.ids.shape[1]
        self._divergences, self._of_rest = torch.zeros_like(own), torch.zeros_like(own)
        self._ids = torch.zeros(len(own), count, dtype=torch.int64, device=own.device)
        self._at_top = own.new_zeros(len(own), count)

    def note(self, rows: Tensor, numbers: Tensor, softmax: Softmax) -> None:
        """Takes a chunk's exponentials, unrounded. `numbers`: those by which the teacher knows the rows."""
        teacher, temperature = self._teacher, self._teacher.temperature
        exponentials, ids = softmax.exponentials, teacher.ids[numbers].long()
        top = exponentials.gather(1, ids)
        # A sum over the others alone has no cancellation, unlike 1 - Σ p.
        rest = exponentials.scatter_(1, ids, 0.0).sum(1, keepdim=True)
        exponentials.scatter_(1, ids, top)
        buckets = (torch.cat([top, rest], 1) / softmax.norms[:, None]).clamp(min=_LEAST)
        model = torch.log_softmax(buckets.log() / temperature, 1)
        stored = teacher.log_probabilities[numbers].to(model.dtype)
        reference = torch.log_softmax(stored / temperature, 1)
        divergence = (reference.exp() * (reference - model)).sum(1) * temperature**2
        derivative = (model.exp() - reference.exp()) * temperature
        self._divergences[rows] = divergence.to(self._divergences.dtype)
        self._ids[rows] = ids
        self._at_top[rows] = derivative[:, :-1].to(self._at_top.dtype)
        self._of_rest[rows] = (derivative[:, -1] / buckets[:, -1]).to(self._of_rest.dtype)

    def rows(self, selected: Tensor, rows: Tensor) -> SoftRows:
        """What the gradient of (n,) rows is made of, under their part of a selection, (n,) bool."""
        return SoftRows(*self._shares(selected), self._ids[rows], self._at_top[rows], self._of_rest[rows])

    def mixed(self, losses: Tensor, mask: Tensor) -> Tensor:
        """The loss of every row under a selection, (T,) of (T,) cross-entropies and (T,) bool."""
        hard, soft = self._shares(mask)
        return losses * hard + self._divergences * soft

    def _shares(self, selected: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of the cross-entropy and of the divergence in the losses of rows."""
        if self._teacher.of_others:
            return selected.to(self._at_top.dtype), self._teacher.share * (~selected).to(self._at_top.dtype)
        ones = torch.ones_like(selected, dtype=self._at_top.dtype)
        return (1.0 - self._teacher.share) * ones, self._teacher.share * ones


@dataclass(frozen=True, eq=False)
class DistilledWeights:
    """Weights of 1 for the rows that are trained on, and a teacher.

    `on_others`: whether the divergence is that of the valid targets which are not selected.
    """

    share: float
    temperature: float
    on_others: bool
    targets: Targets

    @property
    def trains_others(self) -> bool:
        """See `Weights`."""
        return self.on_others

    @property
    def teacher(self) -> Teacher:
        """See `Weights`."""
        log_probabilities, ids = self.targets.column("ref_top_logprob"), self.targets.column("ref_top_id")
        return Teacher(log_probabilities.flatten(0, 1), ids.flatten(0, 1), self.share, self.temperature, self.on_others)

    def of_selected(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        return torch.ones_like(softmax.losses)

    def of_others(self, rows: Tensor, softmax: Softmax) -> Tensor:
        """See `Weights`."""
        return self.targets.valid.flatten()[rows].to(softmax.losses.dtype)
