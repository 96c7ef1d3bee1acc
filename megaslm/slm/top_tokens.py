"""The most likely tokens of a prediction, from the logits of a chunk of rows, for `megaslm score --top-logits`."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megaslm.slm.exponentials import exponentials_and_entropy
from megaslm.slm.head_pass import HeadPass


@dataclass(frozen=True)
class TopOf:
    """Which tokens are looked for: the `count` most likely ones among those with ids below `vocab_size`, or all."""

    count: int
    vocab_size: int | None = None


class TopTokens(NamedTuple):
    """The K most likely tokens of each row, the most likely first.

    `log_probabilities`: (…, K+1) float32 in nats; the last one is of all other tokens together, -inf where there are
    none. `ids`: (…, K) int64.
    """

    log_probabilities: Tensor
    ids: Tensor


def token_losses_and_top(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    top: TopOf,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor, TopTokens]:
    """The losses and entropies of `token_losses_and_entropies`, and the most likely tokens of every row."""
    with torch.no_grad():
        head = HeadPass(hidden, weight, bias, targets, logit_scale)
        losses = torch.empty(targets.shape, dtype=head.loss_dtype, device=hidden.device)
        entropies = torch.empty_like(losses)
        found = TopTokens(losses.new_empty(len(targets), top.count + 1), targets.new_empty(len(targets), top.count))
        for rows in head.chunks():
            logits = head.logits(rows)
            values, ids = logits[:, : top.vocab_size].topk(top.count)
            maximum = logits.amax(1, keepdim=True)
            at_target = logits.gather(1, targets[rows][:, None])
            losses[rows], entropies[rows] = exponentials_and_entropy(logits, targets[rows])
            log_norms = losses[rows][:, None] + at_target
            # The logits now lie below their maximum. A sum over the others alone has no cancellation, unlike 1 - Σ p.
            rest = logits.scatter_(1, ids, float("-inf")).exp_().sum(1, keepdim=True).log() + maximum
            found.log_probabilities[rows] = torch.cat([values, rest], 1) - log_norms
            found.ids[rows] = ids
        return losses, entropies, found
