"""The bytes that forward passes keep for their backward passes, by a model's configuration, and whether they fit."""

from transformers import PretrainedConfig

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import Recompute
from megaslm.model.forward_flops import head_size

_FLOAT32_BYTES = 4
_SHARE = 2
"""Kept graphs may take one part in so many of the memory left. The rest is for what is not foreseen here."""


def kept_bytes_per_token(config: PretrainedConfig, element_bytes: int, recompute: Recompute) -> int:
    """Bytes of activations that autograd keeps per token of a micro-batch, between its passes.

    With D the width, Q and K the widths of all query and of all key heads, I the feed-forward width and s the bytes of
    an element:

    - A norm keeps 4·D + 2·s·D: its input in float32, the normalised input, and its output.
    - A decoder layer keeps two norms, s·(2·Q + 2·K) for queries, keys, values and attention's result, and 4·s·I for
      gate, its activation, up and their product. Where it is recomputed in the backward pass, it keeps s·D: its input.
      Where it is recomputed selectively, it keeps s·(D + Q + K + D + I): its input, attention's result and every
      second product, of keys, of attention and up.
    - The last norm follows the layers. Its output is the head's input; the head keeps nothing more.

    Left out are numbers per token or head (norms, softmax), positions, and keys and values that are repeated for their
    queries. Holds for the families that MegaSLM supports: llama, mistral, qwen2, granite.

    Args:
        config: of the model.
        element_bytes: s, 2 for bf16 and 4 for float32.
        recompute: what the backward pass computes again.
    """
    width = config.hidden_size
    norm = width * (_FLOAT32_BYTES + 2 * element_bytes)
    heads = head_size(config) * (config.num_attention_heads + config.num_key_value_heads)
    match recompute:
        case "full":
            layer = element_bytes * width
        case "selective":
            layer = element_bytes * (2 * width + heads + config.intermediate_size)
        case "none":
            layer = 2 * norm + element_bytes * (2 * heads + 4 * config.intermediate_size)
    return int(config.num_hidden_layers * layer + norm)


def kept_graph_bytes(config: PretrainedConfig, element_bytes: int, recompute: Recompute, plan: BatchPlan) -> int:
    """Bytes per rank of all graphs of a step but one, which a step without kept graphs holds too.

    The arguments before `plan` are those of `kept_bytes_per_token`.
    """
    per_token = kept_bytes_per_token(config, element_bytes, recompute)
    return (plan.micro_steps - 1) * plan.micro_batch_rows * plan.seq_len * per_token


def kept_graphs_may_take_bytes(left_bytes: int) -> int:
    """What kept graphs may take of the memory that a rank has left beside its weights and optimiser states."""
    return max(0, left_bytes // _SHARE)
