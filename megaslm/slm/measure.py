"""What the head measures without a gradient: losses of targets and, if asked for, more of the predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megaslm.slm.exponentials import exponentials, exponentials_and_entropy
from megaslm.slm.head_pass import HeadPass, losses_alone


@dataclass(frozen=True)
class Measure:
    """What is measured beside losses.

    `top_tokens`: how many of the most likely tokens, among those with ids below `vocab_size`, or all. `is_greedy`:
    whether the target is the most likely token; not beside the others.
    """

    entropies: bool = False
    top_tokens: int = 0
    vocab_size: int | None = None
    is_greedy: bool = False


LOSSES = Measure()


class TopTokens(NamedTuple):
    """The K most likely tokens of each target, the most likely first.

    `log_probabilities`: (…, K+1) float32 in nats; the last one is of all other tokens together, -inf where there are
    none. `ids`: (…, K) int64.
    """

    log_probabilities: Tensor
    ids: Tensor


class Measured(NamedTuple):
    """The losses of (T,) targets, or of (B, L), and what else was asked for; of the same shape, detached.

    `losses`: -ln p(target) in nats, float32 (Rho-1, equations 1 and 2). `entropies`: of the predictions, float32 in
    nats. `is_greedy`: bool.
    """

    losses: Tensor
    entropies: Tensor | None = None
    top: TopTokens | None = None
    is_greedy: Tensor | None = None

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The losses, and the entropies where they were asked for."""
        return (self.losses,) if self.entropies is None else (self.losses, self.entropies)

    def view_as(self, targets: Tensor) -> "Measured":
        """The same, reshaped from (T,) to the targets' (B, L)."""
        return self._each(lambda part: part.view(*targets.shape, *part.shape[1:]))

    def from_target(self, first: int) -> "Measured":
        """The same of the (B, L) targets from `first` on, in each row."""
        return self._each(lambda part: part[:, first:])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Measured":
        top = None if self.top is None else TopTokens(*map(change, self.top))
        entropies, is_greedy = (None if part is None else change(part) for part in (self.entropies, self.is_greedy))
        return Measured(change(self.losses), entropies, top, is_greedy)

    @classmethod
    def joined(cls, parts: "list[Measured]", dim: int = 0) -> "Measured":
        """Rows one after the other; or with `dim` 1, targets."""
        losses, entropies, tops, is_greedy = zip(*parts, strict=True)
        return cls(
            torch.cat(losses, dim),
            None if entropies[0] is None else torch.cat(entropies, dim),
            None if tops[0] is None else TopTokens(*(torch.cat(each, dim) for each in zip(*tops, strict=True))),
            None if is_greedy[0] is None else torch.cat(is_greedy, dim),
        )


def measure(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    what: Measure = LOSSES,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
) -> Measured:
    """Measures every row. No gradient flows, and the host reads nothing.

    Args:
        hidden: (T, D) float32 or bfloat16.
        weight: (V, D), the head's matrix, of the same dtype.
        targets: (T,) int64.
        what: is wanted beside the losses.
        bias: (V,) or None.
        logit_scale: factor of the logits.
    """
    with torch.no_grad():
        head = HeadPass(hidden, weight, bias, targets, logit_scale)
        if what == LOSSES:
            return Measured(losses_alone(head))
        losses = torch.empty(targets.shape, dtype=head.loss_dtype, device=hidden.device)
        entropies, is_greedy = torch.empty_like(losses), torch.empty_like(losses, dtype=torch.bool)
        top = TopTokens(
            losses.new_empty(len(targets), what.top_tokens + 1), targets.new_empty(len(targets), what.top_tokens)
        )
        for rows in head.chunks():
            logits, its_targets = head.logits(rows), targets[rows]
            if what.is_greedy:
                is_greedy[rows] = logits.argmax(1) == its_targets
                losses[rows], _ = exponentials(logits, its_targets, logits)
            elif what.top_tokens:
                losses[rows], entropies[rows], *of_top = _with_top(logits, its_targets, what)
                top.log_probabilities[rows], top.ids[rows] = of_top
            else:
                losses[rows], entropies[rows] = exponentials_and_entropy(logits, its_targets)
        return Measured(
            losses,
            entropies if what.entropies else None,
            top if what.top_tokens else None,
            is_greedy if what.is_greedy else None,
        )


def _with_top(logits: Tensor, targets: Tensor, what: Measure) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, entropies, and log-probabilities and ids of the top tokens, of (n, V) logits, which are overwritten."""
    values, ids = logits[:, : what.vocab_size].topk(what.top_tokens)
    maximum, at_target = logits.amax(1, keepdim=True), logits.gather(1, targets[:, None])
    losses, entropies = exponentials_and_entropy(logits, targets)
    # The logits now lie below their maximum. A sum over the others alone has no cancellation, unlike 1 - Σ p.
    rest = logits.scatter_(1, ids, float("-inf")).exp_().sum(1, keepdim=True).log() + maximum
    return losses, entropies, torch.cat([values, rest], 1) - (losses[:, None] + at_target), ids
