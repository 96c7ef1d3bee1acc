"""Floating-point operations that a model needs, by its configuration. Imports neither transformers nor torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from megaslm.model.families import FAMILIES, Family

FORWARD_AND_BACKWARD = 3.0
"""Operations of training divided by those of its forward pass, whatever is recomputed or selected."""


class ModelShape(Protocol):
    """What of a model's configuration decides its matrix products. transformers' configurations have it."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int


def forward_flops_per_token(shape: ModelShape, length: int) -> float:
    """Operations of one forward pass per token, averaged over a row of `length` tokens.

    Only matrix products count: two operations for every weight of `matrix_parameters`, and in attention two for every
    product of a query and key component or of a probability and value component. A token attends to half of the row,
    the mean under a causal mask. Document borders, which reduce this, are ignored, and so are norms, activations,
    softmax, rotary embeddings and the embedding look-up, which cost little. Training takes three times as much: one
    part for the forward pass, two for the backward.
    """
    return forward_flops(shape).attending(length / 2)


class ForwardFlops(NamedTuple):
    """Operations of one forward pass per token: those of the weights, and those for each token that it attends to."""

    weights: float
    attended_token: float

    def attending(self, tokens: float) -> float:
        """The operations for a token that attends to so many, the mean over the tokens of a text."""
        return self.weights + self.attended_token * tokens


def forward_flops(shape: ModelShape) -> ForwardFlops:
    """The operations of a model, counted as in `forward_flops_per_token`."""
    return ForwardFlops(
        weights=2.0 * matrix_parameters(shape),
        attended_token=float(shape.num_hidden_layers * 2 * 2 * _queries_width(shape)),
    )


def matrix_parameters(shape: ModelShape) -> int:
    """Weights of the matrices that multiply every token: projections, feed-forward layers and the head.

    The embedding table does not count. The head counts once, also where it shares the table. Biases and gains are left
    out. Holds for the families that MegaSLM supports.
    """
    width = shape.hidden_size
    keys_values_width = 2 * shape.num_key_value_heads * head_size(shape)
    attention = width * (2 * _queries_width(shape) + keys_values_width)
    feed_forward = _feed_forward_matrices(shape) * width * shape.intermediate_size
    return shape.num_hidden_layers * (attention + feed_forward) + shape.vocab_size * width


def _feed_forward_matrices(shape: ModelShape) -> int:
    return FAMILIES.get(getattr(shape, "model_type", None) or "", Family()).feed_forward_matrices


def _queries_width(shape: ModelShape) -> int:
    return int(shape.num_attention_heads * head_size(shape))


def head_size(shape: ModelShape) -> int:
    """The width of one attention head."""
    # Some families' configurations lack this key, and others have it as null.
    return getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads


@dataclass
class StatedShape:
    """The shape that a config.json states."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int | None = None
    model_type: str | None = None


def stated_shape(stated: Mapping[str, Any]) -> StatedShape | None:
    """The shape in the content of a config.json; None where it lacks a number, which transformers would guess."""
    names = ModelShape.__annotations__
    if not all(isinstance(stated.get(name), int) for name in names):
        return None
    others: dict[str, Any] = {name: stated.get(name) for name in ("head_dim", "model_type")}
    return StatedShape(**{name: stated[name] for name in names}, **others)
