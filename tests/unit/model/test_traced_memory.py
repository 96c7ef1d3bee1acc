"""Activations on fake tensors: two layers tell what any number takes, and what is counted is what really lives."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from megaslm.config.schema import Recompute
from megaslm.model.activations import kept_bytes_per_token
from megaslm.model.traced_memory import LiveBytes, parameter_counts, traced_layers, trunk_memory, with_layers

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LENGTH = 64
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, head_dim=24, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "granite": GraniteConfig(**SIZES),
}
of_every_family = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@of_every_family
def test_two_layers_tell_what_four_take(config: PretrainedConfig, recompute: Recompute) -> None:
    whole, _ = traced_layers(config, recompute, torch.bfloat16, length=LENGTH)
    assert trunk_memory(config, recompute, torch.bfloat16, rows=1, length=LENGTH) == whole


def test_one_layer_is_traced_as_one() -> None:
    config = with_layers(CONFIGS["llama"], 1)
    whole, _ = traced_layers(config, "none", torch.bfloat16, length=LENGTH)
    assert trunk_memory(config, "none", torch.bfloat16, rows=1, length=LENGTH) == whole


def test_rows_take_as_much_as_each_other() -> None:
    """But for the bounds of documents, 4 bytes each, and positions."""
    config = CONFIGS["llama"]
    one, four = (trunk_memory(config, "none", torch.bfloat16, rows=rows, length=LENGTH) for rows in (1, 4))
    assert four.kept_bytes == 4 * one.kept_bytes
    assert four.backward_bytes == 4 * one.backward_bytes


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_the_formula_says(dtype: torch.dtype, recompute: Recompute) -> None:
    """The rest is positions, angles, and numbers per token or head."""
    config = LlamaConfig(**{**SIZES, "hidden_size": 256, "intermediate_size": 704})
    found = trunk_memory(config, recompute, dtype, rows=1, length=LENGTH).kept_bytes
    expected = LENGTH * kept_bytes_per_token(config, dtype.itemsize, recompute)
    assert expected <= found < 1.15 * expected


def test_recomputing_more_keeps_less_and_works_more() -> None:
    levels: tuple[Recompute, ...] = ("none", "selective", "full")
    by_level = [trunk_memory(CONFIGS["llama"], level, torch.bfloat16, rows=1, length=LENGTH) for level in levels]
    kept = [found.kept_bytes for found in by_level]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3
    working = [found.backward_bytes - found.kept_bytes for found in by_level]
    assert working[0] < working[2]


@of_every_family
def test_parameters_are_those_of_the_built_model(config: PretrainedConfig) -> None:
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    counts, layer = parameter_counts(config)
    assert counts.total == sum(parameter.numel() for parameter in lm.parameters())
    assert layer == sum(parameter.numel() for parameter in lm.model.layers[0].parameters())
    assert counts.head == (0 if config.tie_word_embeddings else lm.lm_head.weight.numel())


def test_tensors_count_while_they_live_and_views_do_not() -> None:
    known = torch.zeros(1000)
    with LiveBytes([known]) as live:
        first = torch.ones(100)
        view = first[10:].view(9, 10)
        assert live.bytes == 400
        second = first + 1
        assert (live.bytes, live.peak_bytes) == (800, 800)
        del first, second
        assert live.bytes == 400  # The view holds the first one's storage.
        del view
        known.view(10, 100)
        assert (live.bytes, live.peak_bytes) == (0, 800)
        live.forget_peak()
        assert live.peak_bytes == 0
