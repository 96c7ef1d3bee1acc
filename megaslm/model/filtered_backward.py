"""A backward pass that leaves out, in the upper decoder layers, the tokens that are not trained (`slm.backward`).

Such a layer keeps its input and its keys and values. In the backward pass it runs anew for the trained tokens, which
attend to the keys and values of all, and goes back from there. The gradient that a trained token sends through the keys
and values of other tokens is lost, and with it a part of the gradient of these layers and of all below. How much is
lost is measured in some steps, which compute both gradients and train on the exact one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from megaslm.model.documents import KeysOfAll
from megaslm.model.forward_flops import head_size
from megaslm.slm.choice import Deferred
from megaslm.slm.topk import AllReduceSum

PARAMETERS, HIDDEN = range(2)


def filtered_layers(config: RunConfig, layers: int) -> int:
    """How many of a model's layers leave tokens out of their backward pass in a run, from the last one down."""
    return max(1, round(config.slm.filtered_layers * layers)) if config.filters_backward else 0


def require_no_dropout(lm: Any) -> None:
    """Raises ConfigError where a layer has dropout: run anew for some of its tokens, it would drop others."""
    found = [getattr(module, "attention_dropout", 0.0) for module in lm.modules()]
    found += [module.p for module in lm.modules() if isinstance(module, nn.Dropout)]
    if largest := max(found, default=0.0):
        raise ConfigError(
            f"slm.backward = filtered: runs layers anew in the backward pass; found dropout of {largest:g}: set it to "
            "0 in the model's config.json, or slm.backward to exact"
        )


def kept_keys_bytes(model: PretrainedConfig, tokens: int, dtype: torch.dtype) -> int:
    """The keys and values of so many tokens in one layer."""
    return 2 * tokens * model.num_key_value_heads * head_size(model) * dtype.itemsize


@dataclass(eq=False)
class BackwardFilter:
    """How the backward passes of a model are run, for all of its upper layers.

    `leaves_out`: whether tokens are left out. `compares`: whether both gradients are computed; the exact one counts.
    `products`: (2, 3) float64, the sums of both gradients' products: exact times filtered, exact squared and filtered
    squared; of the parameters of the upper layers, and of the hidden states that enter the lowest of them.
    """

    leaves_out: bool = False
    compares: bool = False
    products: Tensor = field(default_factory=lambda: torch.zeros(2, 3, dtype=torch.float64))

    @property
    def is_on(self) -> bool:
        """Whether a pass differs from an exact one."""
        return self.leaves_out or self.compares

    def cosine(self, all_reduce_sum: AllReduceSum) -> Tensor:
        """The smaller of the cosines of both gradients since `forget`: float64 scalar, NaN where one of them is 0."""
        exact_filtered, exact, filtered = all_reduce_sum(self.products).unbind(1)
        return (exact_filtered / (exact * filtered).sqrt()).amin()

    def forget(self) -> None:
        """Begins to sum anew."""
        self.products = torch.zeros_like(self.products)

    def add(self, place: int, exact: Sequence[Tensor | None], filtered: Sequence[Tensor | None]) -> None:
        """Adds the products of two gradients; None is 0."""
        self.products = self.products.to(next(part.device for part in exact if part is not None))
        for one, other in zip(exact, filtered, strict=True):
            pairs = ((one, other), (one, one), (other, other))
            for column, (left, right) in enumerate(pairs):
                if left is not None and right is not None:
                    self.products[place, column] += (left.double() * right.double()).sum()


@dataclass(eq=False)
class TrainedTokens:
    """The tokens of one micro-batch whose backward pass is run through the upper layers.

    `chosen`: (B·L,) bool, or the choice that will be made before the backward pass; set once the head has run.
    `carried`: while gradients are compared, that of the layer above with tokens left out.
    """

    filter: BackwardFilter
    chosen: Deferred | Tensor | None = None
    carried: Tensor | None = None
    _rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """(n,) int64, their numbers among the micro-batch's B·L tokens. The host waits for their count.

        Where there are none it is the first token: layers need one, and its gradient is 0.
        """
        if self._rows is None:
            rows = self._found()
            self._rows = rows if len(rows) else rows.new_zeros(1)
        return self._rows

    def _found(self) -> Tensor:
        if isinstance(self.chosen, Deferred):
            assert self.chosen.known is not None, "the choice is made before the backward pass"
            return self.chosen.known.rows
        assert self.chosen is not None, "the head runs before the backward pass"
        return self.chosen.nonzero().squeeze(1)


@dataclass(frozen=True)
class LayerCall:
    """One call of a decoder layer, to be made again for some of its tokens."""

    layer: nn.Module
    is_lowest: bool
    trained: TrainedTokens
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The layer's parameters that are trained."""
        return [parameter for parameter in self.layer.parameters() if parameter.requires_grad]

    def of_all(self, hidden: Tensor, keys: KeysOfAll) -> Tensor:
        """The pass through the layer; `keys` keeps those of all tokens."""
        return self._run(hidden, documents=self.kwargs["documents"].with_keys(keys))

    def gradients(self, hidden: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The exact gradients of (B, L, D) hidden states and of the parameters; None is 0."""
        own = hidden.detach().requires_grad_()
        with torch.enable_grad():
            output = self._run(own)
        return torch.autograd.grad(output, [own, *self.parameters], gradient, allow_unused=True)

    def gradients_of_trained(
        self, hidden: Tensor, gradient: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The same, without what other tokens would contribute."""
        rows = self.trained.rows
        own = _some(hidden, rows).detach().requires_grad_()
        positions = tuple(_some(part, rows) for part in self.kwargs["position_embeddings"])
        documents = self.kwargs["documents"].with_keys(KeysOfAll(key, value, rows))
        with torch.enable_grad():
            output = self._run(own, position_embeddings=positions, position_ids=None, documents=documents)
        found = torch.autograd.grad(output, [own, *self.parameters], _some(gradient, rows), allow_unused=True)
        of_hidden = torch.zeros_like(hidden)
        of_hidden.flatten(0, 1).index_copy_(0, rows, found[0][0])
        return of_hidden, *found[1:]

    def _run(self, hidden: Tensor, **changes: Any) -> Tensor:
        output: Tensor = type(self.layer).forward(self.layer, hidden, *self.args, **{**self.kwargs, **changes})
        return output


class FilteredLayer(torch.autograd.Function):
    """A decoder layer whose backward pass is that of trained tokens.

    The parameters are inputs of the function, so that their gradients reach DeepSpeed's hooks in the usual order.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, call: LayerCall, *parameters: nn.Parameter) -> Tensor:
        """(B, L, D) hidden states of (B, L, D)."""
        keys = KeysOfAll()
        output = call.of_all(hidden, keys)
        ctx.save_for_backward(hidden, keys.key, keys.value)
        ctx.call = call
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the hidden states and of the parameters."""
        call: LayerCall = ctx.call
        hidden, key, value = ctx.saved_tensors
        trained = call.trained
        if not trained.filter.compares:
            of_hidden, *of_parameters = call.gradients_of_trained(hidden, gradient, key, value)
            return of_hidden, None, *of_parameters
        carried = gradient if trained.carried is None else trained.carried
        of_hidden, *of_parameters = call.gradients(hidden, gradient)
        trained.carried, *filtered = call.gradients_of_trained(hidden, carried, key, value)
        trained.filter.add(PARAMETERS, of_parameters, filtered)
        if call.is_lowest:
            trained.filter.add(HIDDEN, [of_hidden], [trained.carried])
        return of_hidden, None, *of_parameters


def _some(batch: Tensor, rows: Tensor) -> Tensor:
    """(1, n, …): the given ones of the B·L tokens of (B, L, …)."""
    return batch.flatten(0, 1).index_select(0, rows)[None]
