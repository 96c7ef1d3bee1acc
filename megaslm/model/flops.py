"""Floating-point operations of a model, by its configuration alone."""

from transformers import PretrainedConfig


def forward_flops_per_token(config: PretrainedConfig, length: int) -> float:
    """Operations of one forward pass for one token of a row of `length`, on average over the row.

    Counted are the matrix products: two operations for every weight of `matrix_parameters`, and in attention two for
    every number of queries by keys and of probabilities by values. A token attends to half of the row, the mean under
    a causal mask; document borders, which leave it less, are not looked at, nor is what else takes little: norms,
    activations, softmax, rotary embeddings, the embedding table's look-up. Training takes three times as much, one
    for the forward pass and two for the backward.
    """
    attention = config.num_hidden_layers * 2 * 2 * _queries_width(config) * length / 2
    return 2.0 * matrix_parameters(config) + attention


def matrix_parameters(config: PretrainedConfig) -> int:
    """Weights of the matrices that every token is multiplied by: projections, gated feed-forward layers and the head.

    The embedding table is none of them; the head counts once, also where it shares the table. Biases and gains are
    left out. Holds for the families that MegaSLM knows: llama, mistral, qwen2, granite.
    """
    width = config.hidden_size
    keys_values_width = 2 * config.num_key_value_heads * _head_size(config)
    attention = width * (2 * _queries_width(config) + keys_values_width)
    feed_forward = 3 * width * config.intermediate_size
    return config.num_hidden_layers * (attention + feed_forward) + config.vocab_size * width


def _queries_width(config: PretrainedConfig) -> int:
    return int(config.num_attention_heads * _head_size(config))


def _head_size(config: PretrainedConfig) -> int:
    # Qwen2's and Granite's configurations may have no such key, and others have it as null.
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
