"""Operations are counted by the matrices that a model really has, and as the published ceilings count them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from megaslm.config.load import load
from megaslm.config.schema import Architecture, RunConfig
from megaslm.model.forward_flops import forward_flops_per_token, matrix_parameters
from megaslm.model.load import build_from_shape
from tests.toy import SHAPE

ROOT = Path(__file__).resolve().parents[3]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def shape(name: str) -> PretrainedConfig:
    architecture = load(RunConfig, ROOT / "configs" / "shapes" / f"{name}.yaml").value.model.from_scratch
    assert architecture is not None
    with torch.device("meta"):
        return build_from_shape(architecture, eos_id=2, dtype=torch.bfloat16).config


def matrices_of(lm: nn.Module, *, tied: bool) -> int:
    """Elements of all matrices; the embedding table counts where it is the head too."""
    matrices = sum(parameter.numel() for parameter in lm.parameters() if parameter.ndim == 2)
    return matrices if tied else matrices - lm.get_input_embeddings().weight.numel()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_matrices_are_those_of_a_model_from_a_shape(family: str, *, tied: bool) -> None:
    architecture = Architecture.model_validate({**SHAPE, "family": family, "tie_embeddings": tied})
    with torch.device("meta"):
        lm = build_from_shape(architecture, eos_id=2, dtype=torch.float32)
    assert matrix_parameters(lm.config) == matrices_of(lm, tied=tied)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
        LlamaConfig(**SIZES, head_dim=24),
        MistralConfig(**SIZES, head_dim=24),
        Qwen2Config(**SIZES),
        GraniteConfig(**SIZES),
        Qwen3Config(**SIZES, head_dim=24),
        Olmo2Config(**SIZES),
        Olmo3Config(**SIZES),
        SmolLM3Config(**SIZES, pad_token_id=None),
        Phi3Config(**SIZES, pad_token_id=None),
        PhiConfig(**SIZES),
        Gemma3TextConfig(**SIZES, head_dim=24),
    ],
    ids=lambda config: config.model_type,
)
def test_the_matrices_are_those_of_every_family(config: PretrainedConfig, *, tied: bool) -> None:
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    assert matrix_parameters(config) == matrices_of(lm, tied=tied)


def test_attention_is_counted_half_and_by_its_queries() -> None:
    config = LlamaConfig(**SIZES)
    length, layers, heads, head_size = 128, 3, 4, 8
    products = 2 * (2 * length * length * head_size) * heads * layers
    of_attention = forward_flops_per_token(config, length) - 2 * matrix_parameters(config)
    assert of_attention * length == products / 2


@pytest.mark.parametrize(
    ("name", "length", "tokens_per_second"), [("tinyllama-1b", 2048, 263e3), ("mistral-7b", 4096, 38.8e3)]
)
def test_speeds_at_60_percent_of_an_h100_are_the_known_ones(name: str, length: int, tokens_per_second: float) -> None:
    assert 0.6 * 989e12 / forward_flops_per_token(shape(name), length) == pytest.approx(tokens_per_second, rel=0.005)
