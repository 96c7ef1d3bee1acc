"""The bytes that a forward pass keeps: the formula against what autograd saves."""

import pytest
import torch
from torch import Tensor

from megaslm.config.schema import Architecture, Recompute
from megaslm.model.activations import kept_bytes_per_token
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Deferred
from tests.toy import EOS_ID, Unsharded

ROWS, LENGTH = 2, 32
SHAPES = {
    "like TinyLlama": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_layers": 3,
        "num_heads": 8,
        "num_kv_heads": 1,
    },
    "wide": {"hidden_size": 192, "intermediate_size": 256, "num_layers": 2, "num_heads": 4},
}


def model_of(shape: str, dtype: torch.dtype, recompute: Recompute) -> SelectiveLM:
    lm = build_from_shape(Architecture(vocab_size=64, **SHAPES[shape]), eos_id=EOS_ID, dtype=dtype)
    draw_weights(lm, seed=0, standard_deviation=0.02, sharding=Unsharded())
    prepare_layers(lm.train(), recompute=recompute, compiled=False)
    return SelectiveLM(lm, eos_id=EOS_ID, document_isolation=False)


def saved_bytes(model: SelectiveLM) -> int:
    """The storages that autograd holds between the passes, each once; parameters belong to the model."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(3, 64, (ROWS, LENGTH + 1))
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        output = model(tokens, Deferred())
    assert output.total.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula_says_what_autograd_saves(shape: str, dtype: torch.dtype, recompute: Recompute) -> None:
    model = model_of(shape, dtype, recompute)
    expected = ROWS * LENGTH * kept_bytes_per_token(model.lm.config, dtype.itemsize, recompute)
    # A positive rest: positions, tokens, and numbers per token or head.
    assert expected <= saved_bytes(model) < 1.08 * expected
