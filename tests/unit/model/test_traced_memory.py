"""Activations on fake tensors: two layers tell what any number takes, and what is counted is what really lives."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from megaslm.config.schema import Recompute
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.selective_lm import SelectiveLM
from megaslm.model.traced_memory import LiveBytes, parameter_counts, traced_layers, trunk_memory, with_layers
from megaslm.slm.choice import Deferred

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
    "qwen3": Qwen3Config(**SIZES, head_dim=24),
    "olmo2": Olmo2Config(**SIZES),
    "smollm3": SmolLM3Config(**SIZES, pad_token_id=None),
    "phi": PhiConfig(**SIZES),
    "phi3": Phi3Config(**SIZES, pad_token_id=None),
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


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@of_every_family
def test_what_is_kept_is_what_autograd_holds(
    config: PretrainedConfig, dtype: torch.dtype, recompute: Recompute
) -> None:
    """The rest is angles and positions, which live without being saved, and what the head's pass holds."""
    config = copy.deepcopy(config)
    config.hidden_size, config.intermediate_size = 256, 704
    lm = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    prepare_layers(lm, recompute=recompute, compiled=False)
    held = held_bytes(SelectiveLM(lm, eos_id=0, document_isolation=False))
    assert held <= trunk_memory(config, recompute, dtype, rows=1, length=LENGTH).kept_bytes < 1.15 * held


def held_bytes(model: SelectiveLM) -> int:
    """The storages that autograd holds between the passes of a row, each once; parameters belong to the model."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(3, SIZES["vocab_size"], (1, LENGTH + 1))
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        output = model(tokens, Deferred())
    assert output.total.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


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
    of_head = sum(parameter.numel() for parameter in lm.lm_head.parameters())
    assert counts.head == (0 if config.tie_word_embeddings else of_head)


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
