"""How likely a model finds given continuations. Texts become ids as in lm-eval, so that the results are comparable."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megaslm.errors import PromptTooLong
from megaslm.generation.decoding_loop import KeepGoing
from megaslm.generation.text_tokens import TextTokens, encode_pairs
from megaslm.model.plain_lm import PlainLM

_SHOWN_PAIRS = 5

Measure = Callable[[Tensor, Tensor], Tensor]
"""Takes (B, L+1) int64 tokens and (B, L) bool, which targets are wanted; gives their n losses in nats, in row order."""


class LogLikelihood(NamedTuple):
    """A model's judgement of a continuation."""

    nats: float
    """ln p(continuation | context), 0 or less."""
    tokens: int
    """Tokens of the continuation."""
    is_greedy: bool
    """Whether each of them is the most likely token after those before it."""


class ContinuationLoss(NamedTuple):
    """The loss of a continuation in nats, -ln p(continuation | context), and its tokens."""

    nats: float
    tokens: int


class _Pair(NamedTuple):
    place: int
    ids: list[int]
    """Of context and continuation."""
    first: int
    """Index of the continuation's first id."""


def log_likelihoods(
    lm: PlainLM,
    tokens: TextTokens,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_rows: int = 16,
    finished: Callable[[int, LogLikelihood], None] | None = None,
) -> list[LogLikelihood]:
    """The log-likelihood of each continuation given its context, in the order of the pairs.

    The longest pairs come first, so that a lack of memory shows at once.

    Args:
        lm: the model.
        tokens: its tokenizer.
        pairs: (context, continuation). An empty context is replaced by BOS, or EOS where there is none.
        batch_rows: pairs that are measured at once.
        finished: called with the place of each pair that is done.

    Raises:
        DataError: a continuation has no token of its own.
        PromptTooLong: a pair exceeds the model's context. Nothing was measured.
    """
    encoded = _longest_first(tokens, pairs)
    _require_fit(encoded, lm.context_tokens)
    done: dict[int, LogLikelihood] = {}
    for start in range(0, len(encoded), batch_rows):
        batch = encoded[start : start + batch_rows]
        for pair, result in zip(batch, _measured(lm, batch, tokens.pad_id), strict=True):
            done[pair.place] = result
            if finished is not None:
                finished(pair.place, result)
    return [done[place] for place in range(len(pairs))]


def continuation_losses(
    measure: Measure,
    tokens: TextTokens,
    pairs: Sequence[tuple[str, str]],
    *,
    device: torch.device,
    batch_rows: int,
    keep_going: KeepGoing,
) -> list[ContinuationLoss]:
    """The losses of pairs as in `log_likelihoods`, on several ranks that must run equally many forward passes.

    `measure` is a forward pass of a model on `device`. `keep_going` says whether any rank has work. The pairs fit into
    the model's context, see `longest_pair`.
    """
    left = _longest_first(tokens, pairs)
    done: dict[int, ContinuationLoss] = {}
    while keep_going(bool(left)):
        batch, left = left[:batch_rows], left[batch_rows:]
        # A rank without work measures a row of its own for the sake of the others.
        rows = batch or [_Pair(-1, [tokens.pad_id] * 2, 1)]
        ids, wanted = _padded(rows, tokens.pad_id)
        losses = measure(ids.to(device), wanted.to(device)).double()
        for pair, own in zip(batch, _split(losses, [_count(row) for row in rows]), strict=False):
            done[pair.place] = ContinuationLoss(sum(own), len(own))
    return [done[place] for place in range(len(pairs))]


def _longest_first(tokens: TextTokens, pairs: Sequence[tuple[str, str]]) -> list[_Pair]:
    encoded = [_Pair(place, ids, first) for place, (ids, first) in enumerate(encode_pairs(tokens, pairs))]
    return sorted(encoded, key=lambda pair: -len(pair.ids))


def _measured(lm: PlainLM, batch: Sequence[_Pair], pad_id: int) -> list[LogLikelihood]:
    ids, wanted = _padded(batch, pad_id)
    counts = [_count(pair) for pair in batch]
    losses, *_, is_greedy = lm.measure(ids.to(lm.device), wanted.to(lm.device))
    assert is_greedy is not None
    return [
        LogLikelihood(-sum(own), count, all(greedy))
        for own, greedy, count in zip(_split(losses.double(), counts), _split(is_greedy, counts), counts, strict=True)
    ]


def _padded(batch: Sequence[_Pair], pad_id: int) -> tuple[Tensor, Tensor]:
    """(B, L+1) int64 ids of pairs, the longest first, and (B, L) bool, the targets that belong to continuations."""
    length = len(batch[0].ids)
    ids = torch.tensor([pair.ids + [pad_id] * (length - len(pair.ids)) for pair in batch])
    return ids, _wanted(batch, length - 1)


def _count(pair: _Pair) -> int:
    """Tokens of the continuation."""
    return len(pair.ids) - pair.first


def _wanted(batch: Sequence[_Pair], targets: int) -> Tensor:
    """(B, targets) bool: the targets that belong to continuations."""
    column = torch.arange(targets)
    first = torch.tensor([pair.first - 1 for pair in batch])[:, None]
    last = torch.tensor([len(pair.ids) - 2 for pair in batch])[:, None]
    return (column >= first) & (column <= last)


def _split(values: Tensor, counts: Sequence[int]) -> list[list[float]]:
    return [part.tolist() for part in values.cpu().split(list(counts))]


def _require_fit(pairs: Sequence[_Pair], context_tokens: int) -> None:
    # The last token is only a target.
    places = sorted(pair.place for pair in pairs if len(pair.ids) - 1 > context_tokens)
    if places:
        longest = max(len(pair.ids) for pair in pairs)
        raise PromptTooLong(
            f"{len(places)} of {len(pairs)} pairs are too long, at the places "
            f"{', '.join(map(str, places[:_SHOWN_PAIRS]))}{', …' if len(places) > _SHOWN_PAIRS else ''}; the longest "
            f"has {longest} tokens, and the model reads {context_tokens} and predicts one more: shorten the contexts",
            places,
            longest_tokens=longest,
            context_tokens=context_tokens,
        )
