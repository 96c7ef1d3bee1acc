"""A Hugging Face causal LM whose forward returns losses instead of logits.

Under ZeRO-3 a parameter is whole only inside the forward of the module that owns it, and the backward pass is prepared
only for what the engine's forward returns. So the head is a module of its own, which gathers its weight; the loss is
computed inside the wrapped module's forward; and the selection, with its collectives, is passed in as a callable.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from megaslm.errors import ModelError, NonFiniteCriterion
from megaslm.model.decoding import DecodingStep, next_logits
from megaslm.model.documents import DOCUMENT_ATTENTION, Documents
from megaslm.model.families import FAMILIES
from megaslm.model.filtered_backward import BackwardFilter, TrainedTokens
from megaslm.slm.choice import ByLoss, Choice, Deferred, Every, HeadOutput, Known, no_threshold
from megaslm.slm.measure import LOSSES, Measure, Measured, measure
from megaslm.slm.token_loss import (
    HeadMethod,
    cache_bytes,
    deferred_loss,
    selective_loss,
    weighted_loss,
)

CausalLM = Any
"""A transformers model for causal language modeling: `.model` gives hidden states, `.lm_head` is a linear layer."""

_TOKENS_AT_ONCE_ON_CPU = 1024


@dataclass(frozen=True)
class HeadSettings:
    """How the head computes the gradient of a choice that depends on the losses; see `megaslm.slm.token_loss`.

    `method`: auto takes `cache` where the model computes in bf16 and the cache fits, else `bracket`. `cache_bytes`: the
    most that `cache` may hold.
    """

    method: Literal["auto", "cache", "bracket", "recompute"] = "auto"
    cache_bytes: int = 1 << 30

    def method_for(self, hidden: Tensor, vocab_size: int) -> HeadMethod:
        """The method for (T, D) hidden states."""
        if self.method != "auto":
            return self.method
        fits = hidden.dtype == torch.bfloat16 and cache_bytes(len(hidden), vocab_size) <= self.cache_bytes
        return "cache" if fits else "bracket"


AUTO_HEAD = HeadSettings()


class SelectiveHead(nn.Linear):
    """The language model's head. With targets it returns losses; without, logits, as the layer it replaces.

    Under ZeRO-3 the weight is whole inside `forward` only, and gathered once for it.
    """

    logit_scale = 1.0
    settings = AUTO_HEAD

    @classmethod
    def taking_over(cls, lm: Any, settings: HeadSettings) -> "SelectiveHead":
        """A head that owns the very parameters of `lm.lm_head`, and scales logits as `lm` does.

        Raises:
            ModelError: the model's head is not a linear layer.
        """
        if not isinstance(lm.lm_head, nn.Linear):
            raise ModelError(
                f"the model's head is a {type(lm.lm_head).__name__}; MegaSLM trains models with a linear lm_head"
            )
        head = cls(lm.lm_head.in_features, lm.lm_head.out_features, bias=lm.lm_head.bias is not None, device="meta")
        head.weight = lm.lm_head.weight
        head.bias = lm.lm_head.bias
        head.settings = settings
        head.logit_scale = logit_scale(lm.config)
        return head

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        choice: Choice | Deferred | Measure = LOSSES,
    ) -> Tensor | Measured | HeadOutput:
        """Losses of (T, D) hidden states and (T,) targets.

        Of a choice it is a `HeadOutput`, whose total is NaN on all ranks where a target cannot be sorted.
        """
        if targets is None:
            return super().forward(hidden)
        match choice:
            case Measure():
                return measure(hidden, self.weight, targets, choice, self.bias, self.logit_scale)
            case Every():
                return self._every(hidden, targets, choice)
            case Known() if choice.weights is not None and choice.weights.trains_others:
                return self._every(hidden, targets, Every(choice.mask, choice.weights))
            case Known():
                return self._known(hidden, targets, choice)
            case Deferred():
                measured = deferred_loss(hidden, self.weight, targets, choice, self.bias, self.logit_scale)
                nothing = torch.zeros_like(targets, dtype=torch.bool)
                return HeadOutput(*measured, nothing, no_threshold(hidden.device))
            case _:
                return self._by_loss(hidden, targets, choice)

    def _every(self, hidden: Tensor, targets: Tensor, every: Every) -> HeadOutput:
        total, losses, applied = weighted_loss(
            hidden, self.weight, targets, every.mask.float(), self.bias, self.logit_scale, further=every.weights
        )
        return HeadOutput(total, losses, every.mask, no_threshold(hidden.device), applied)

    def _by_loss(self, hidden: Tensor, targets: Tensor, choice: ByLoss) -> HeadOutput:
        ones = torch.ones(targets.shape, dtype=torch.float32, device=targets.device)
        method = self.settings.method_for(hidden, self.weight.shape[0])
        try:
            return selective_loss(
                hidden, self.weight, targets, ones, choice, self.bias, method=method, logit_scale=self.logit_scale
            )
        except NonFiniteCriterion:
            # DeepSpeed cannot recover from an error that leaves a module, and waits for the backward pass of every
            # rank. So nothing is chosen, and the NaN makes every engine skip this step's update.
            every_row = torch.arange(len(targets), device=targets.device)
            nothing = Known(torch.zeros_like(targets, dtype=torch.bool), every_row[:0], every_row, choice.weights)
            output = self._known(hidden, targets, nothing)
            return output._replace(total=output.total * torch.nan)

    def _known(self, hidden: Tensor, targets: Tensor, known: Known) -> HeadOutput:
        """Runs over the known rows only; the losses of the others are 0."""
        ones = torch.ones(known.rows.shape, dtype=torch.float32, device=targets.device)
        total, chosen, applied = weighted_loss(
            hidden.index_select(0, known.rows),
            self.weight,
            targets[known.rows],
            ones,
            self.bias,
            self.logit_scale,
            further=known.weights,
            numbers=known.rows,
        )
        losses = torch.zeros(targets.shape, dtype=chosen.dtype, device=targets.device)
        losses[known.rows] = chosen
        rest = measure(
            hidden.detach()[known.rest], self.weight, targets[known.rest], LOSSES, self.bias, self.logit_scale
        )
        losses[known.rest] = rest.losses
        if applied is not None:
            applied = torch.zeros_like(losses).index_copy_(0, known.rows, applied)
        return HeadOutput(total, losses, known.mask, no_threshold(hidden.device), applied)


def logit_scale(config: PretrainedConfig) -> float:
    """The family's own factor of the head's product. Other families' keys in config.json are ignored."""
    divisor = FAMILIES[config.model_type].logits_divided_by
    return 1.0 if divisor is None else 1.0 / float(getattr(config, divisor))


class SelectiveLM(nn.Module):
    """A language model that takes rows of tokens and returns losses."""

    def __init__(self, lm: CausalLM, *, eos_id: int, document_isolation: bool, head: HeadSettings = AUTO_HEAD) -> None:
        """Takes over `lm`. A `SelectiveHead` with the very same parameters replaces its head.

        Its attention is replaced by one that ends at document borders.
        """
        super().__init__()
        self.lm = lm
        self.lm.lm_head = SelectiveHead.taking_over(lm, head)
        self.lm.set_attn_implementation(DOCUMENT_ATTENTION)
        self.eos_id = eos_id
        self.document_isolation = document_isolation
        self.backward_filter = BackwardFilter()

    def forward(
        self,
        tokens: Tensor | DecodingStep,
        choice: Choice | Deferred | Measure = LOSSES,
        document_bounds: Tensor | None = None,
    ) -> Tensor | Measured | HeadOutput:
        """The losses of a micro-batch. Of a `DecodingStep`, within `decoding_attention`, the next logits instead.

        Args:
            tokens: (B, L+1) int64; target i is token i+1. They may be on the host. If they are on a GPU and documents
                are isolated, `document_bounds` spare the host from reading them.
            choice: which of the B·L targets, in row order, to train on. With `Deferred` they may be chosen until the
                backward pass. With `Measure` nothing is trained.
            document_bounds: (documents + 1,) int32 of the (B, L) inputs, see `megaslm.dataset.packing`.

        Returns:
            What was measured of (B, L) targets. With a choice a `HeadOutput` of them. Under a `Known` choice the losses
            of all other rows are 0. Where a target of any rank cannot be sorted, the total is NaN on all ranks, and so
            is the norm of its gradient. Of a `DecodingStep` (B, V) float32 logits.
        """
        if isinstance(tokens, DecodingStep):
            return next_logits(self.lm, tokens)
        trained = TrainedTokens(self.backward_filter) if self.backward_filter.is_on else None
        hidden, targets = self._hidden_states(tokens, document_bounds, trained)
        output = cast(Measured | HeadOutput, self.lm.lm_head(hidden, targets.flatten(), choice))
        if trained is not None and isinstance(output, HeadOutput):
            trained.chosen = choice if isinstance(choice, Deferred) else output.mask
        return output.view_as(targets)

    def measure(self, tokens: Tensor, document_bounds: Tensor | None = None, what: Measure = LOSSES) -> Measured:
        """What is measured of (B, L+1) tokens, without gradients. `document_bounds`: as in `forward`, on the host."""
        with torch.inference_mode():
            groups = _at_once(tokens, document_bounds, self.lm.device)
            return Measured.joined([self(rows, what, bounds) for rows, bounds in groups])

    def _hidden_states(
        self, tokens: Tensor, document_bounds: Tensor | None = None, trained: TrainedTokens | None = None
    ) -> tuple[Tensor, Tensor]:
        """The (B·L, D) hidden states of (B, L+1) tokens, and their (B, L) targets, both on the model's device."""
        rows, length, device = tokens.shape[0], tokens.shape[1] - 1, self.lm.device
        if not self.document_isolation:
            documents = Documents.whole_rows(rows, length, device)
        elif document_bounds is None:
            documents = Documents.of_tokens(tokens[:, :-1], self.eos_id, device)
        else:
            documents = Documents(document_bounds, rows, length)
        documents.trained = trained
        tokens = tokens.to(device, non_blocking=True)
        output = self.lm.model(
            input_ids=tokens[:, :-1], position_ids=documents.positions, use_cache=False, documents=documents
        )
        return cast(Tensor, output.last_hidden_state).flatten(0, 1), tokens[:, 1:]


def _at_once(
    tokens: Tensor, document_bounds: Tensor | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The rows of (B, L+1) tokens in groups that pass through the model together, with the bounds of their documents on
    `device`; on a GPU one group.

    On a CPU, groups whose activations stay in its cache are faster for the same products.
    """
    if device.type == "cuda":
        bounds = None if document_bounds is None else document_bounds.pin_memory().to(device, non_blocking=True)
        yield tokens, bounds
        return
    length, first = tokens.shape[1] - 1, 0
    for rows in tokens.split(max(1, _TOKENS_AT_ONCE_ON_CPU // length)):
        stop = first + rows.shape[0] * length
        inside = (
            None
            if document_bounds is None
            else document_bounds[(document_bounds >= first) & (document_bounds <= stop)] - first
        )
        yield rows, inside
        first = stop
