"""The supported architectures, a line each. Imports neither transformers nor torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What MegaSLM must know of an architecture beside transformers' own code of it: keys of config.json, and modules.

    A key means something to the family that names it, and nothing to the others.
    """

    logits_divided_by: str | None = None
    """The divisor of the head's product."""
    local_rope_theta: str | None = None
    """The base of the rotary embeddings of layers within a window, as release 4 of transformers has it."""
    feed_forward_matrices: int = 3
    """The matrices of a feed-forward layer: three of a gated one."""
    final_norm: str = "norm"
    """The name of the norm behind the last layer."""
    ropes_of_layers: str | None = None
    """A list that has 1 for each layer with rotary embeddings, and 0 for each one without."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "olmo2": Family(),
    "olmo3": Family(),
    "smollm3": Family(ropes_of_layers="no_rope_layers"),
    "phi": Family(feed_forward_matrices=2, final_norm="final_layernorm"),
    "phi3": Family(),
    "gemma3_text": Family(local_rope_theta="rope_local_base_freq"),
    "granite": Family(logits_divided_by="logits_scaling"),
}
"""By the model type in config.json."""
